"""Each piece of local/adapter/ and local/sagemaker.py against the AWS document that it stands for.

Every test fails on the plain emulator: EMULATOR=plain pytest tests/integration/test_conformance.py
"""

import io
import json
import os
import signal
import socket
import subprocess
import sys
import tarfile
import time
import urllib.request
import uuid
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError, WaiterError

ROOT = Path(__file__).parents[2]
EMULATOR_PYTHON = os.environ.get("EMULATOR_PYTHON", str(ROOT / ".local/venvs/emulator/bin/python"))
LAMBDA_PYTHON = os.environ.get("LAMBDA_PYTHON", str(ROOT / ".local/venvs/lambda/bin/python"))
PLAIN = os.environ.get("EMULATOR") == "plain"
WAIT_SCALE = 0.02  # a retry's delay of 50 seconds takes one here
SECONDS_TO_END = 15
PAYLOAD_LIMIT = 262_144
ROLE = "arn:aws:iam::000000000000:role/conformance"

pytestmark = pytest.mark.skipif(not Path(EMULATOR_PYTHON).exists(), reason="needs the emulator: make up, once")

# The contract of a SageMaker container, and nothing more: what it is sent decides what it does.
MODEL_SERVER = """
import http.server, json, os, sys, time

class Server(http.server.BaseHTTPRequestHandler):
    def answer(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.answer(200, b"")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if body == b"slow":
            time.sleep(1)
        if body == b"fail":
            self.answer(500, b"no such label")
        elif body == b"die":
            os._exit(1)
        else:
            weights = open(os.environ["SM_MODEL_DIR"] + "/weights.txt").read()
            self.answer(200, json.dumps({"weights": weights, "environment": dict(os.environ)}).encode())

if open(os.environ["SM_MODEL_DIR"] + "/weights.txt").read() == "broken":
    sys.exit("these weights are broken")
port = int(os.environ["SAGEMAKER_BIND_TO_PORT"])
http.server.ThreadingHTTPServer((sys.argv[sys.argv.index("--host") + 1], port), Server).serve_forever()
"""


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def eventually(probe, seconds=10):
    """The first true answer of probe, or its last one when the time is over."""
    deadline = time.monotonic() + seconds
    while not (answer := probe()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return answer


def is_up(url):
    try:
        return urllib.request.urlopen(url, timeout=1).status == 200
    except OSError:
        return False


class Emulator:
    """The emulator's processes, and clients for it."""

    def __init__(self, directory):
        self.port, self.sagemaker_port, self.xray_port = free_port(), free_port(), free_port()
        self.segments = directory / "segments.jsonl"
        url = f"http://127.0.0.1:{self.port}"
        sagemaker_url = url if PLAIN else f"http://127.0.0.1:{self.sagemaker_port}"
        self.environment = {
            "PATH": os.environ["PATH"],
            "GATEWAY_PORT": str(self.port),
            "BIND_HOST": "127.0.0.1",
            "MINISTACK_HOST": "localhost",
            "LOG_LEVEL": "ERROR",
            "SFTP_ENABLED": "0",
            "IOT_MTLS_ENABLED": "0",
            "DOCKER_HOST": "unix:///nonexistent.sock",
            "SFN_WAIT_SCALE": str(WAIT_SCALE),
            "TMPDIR": str(directory),
            "LAMBDA_PYTHON": LAMBDA_PYTHON,
            "PYTHONPATH": "/host/only",
            "AWS_ENDPOINT_URL": url,
            "AWS_ENDPOINT_URL_SAGEMAKER": sagemaker_url,
            "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": sagemaker_url,
            "AWS_XRAY_DAEMON_ADDRESS": f"127.0.0.1:{self.xray_port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
        }
        server = directory / "server.py"
        server.write_text(MODEL_SERVER)
        if PLAIN:
            commands = [[EMULATOR_PYTHON, "-m", "ministack"]]
        else:
            local = ROOT / "local"
            sagemaker = [sys.executable, local / "sagemaker.py", "--port", str(self.sagemaker_port)]
            commands = [
                [EMULATOR_PYTHON, local / "emulator.py"],
                [*sagemaker, "--work-dir", directory / "sagemaker", "--server", server],
                [sys.executable, local / "xray.py", "--port", str(self.xray_port), "--output", self.segments],
            ]
        self.processes = [subprocess.Popen(command, env=self.environment) for command in commands]
        assert eventually(lambda: is_up(f"{url}/_ministack/health"), 20)

    def client(self, service):
        url = {"sagemaker": "_SAGEMAKER", "sagemaker-runtime": "_SAGEMAKER_RUNTIME"}.get(service, "")
        return boto3.client(
            service,
            endpoint_url=self.environment[f"AWS_ENDPOINT_URL{url}"],
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=Config(retries={"total_max_attempts": 1}),
        )

    def stop(self):
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.wait(20)


@pytest.fixture(scope="module")
def emulator(tmp_path_factory):
    emulator = Emulator(tmp_path_factory.mktemp("emulator"))
    yield emulator
    emulator.stop()


@pytest.fixture
def client(emulator):
    return emulator.client


@pytest.fixture
def role():
    """The role of functions and state machines."""
    return ROLE


@pytest.fixture
def wait_scale():
    """What a second of a retry's delay takes."""
    return WAIT_SCALE


@pytest.fixture
def seconds_to_end():
    return SECONDS_TO_END


@pytest.fixture
def function(client, role):
    """Create a function from its source; returns its ARN."""
    created = []

    def create(source, **settings):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("app.py", source)
        answer = client("lambda").create_function(
            FunctionName=f"conformance-{uuid.uuid4().hex[:8]}",
            Runtime="python3.13",
            Handler="app.handler",
            Role=role,
            Code={"ZipFile": archive.getvalue()},
            Timeout=10,
            **settings,
        )
        created.append(answer["FunctionArn"])
        client("lambda").get_waiter("function_active_v2").wait(FunctionName=created[-1])
        return created[-1]

    yield create
    for arn in created:
        client("lambda").delete_function(FunctionName=arn)


@pytest.fixture
def machine(client, role):
    """Create a state machine; returns its ARN."""
    created = []

    def create(states, start=None, settings=None, **top_level):
        definition = {"QueryLanguage": "JSONata", "StartAt": start or next(iter(states)), "States": states, **top_level}
        name = f"conformance-{uuid.uuid4().hex[:8]}"
        answer = client("stepfunctions").create_state_machine(
            name=name, definition=json.dumps(definition), roleArn=role, **settings or {}
        )
        created.append(answer["stateMachineArn"])
        return created[-1]

    yield create
    for arn in created:
        client("stepfunctions").delete_state_machine(stateMachineArn=arn)


@pytest.fixture
def execute(client, seconds_to_end):
    """Run a machine to its end; returns DescribeExecution's answer."""

    def run(arn, value=None):
        states = client("stepfunctions")
        text = json.dumps(value or {}, ensure_ascii=False)
        execution = states.start_execution(stateMachineArn=arn, input=text)["executionArn"]
        return eventually(
            lambda: (answer := states.describe_execution(executionArn=execution))["status"] != "RUNNING" and answer,
            seconds_to_end,
        )

    return run


def invoke_task(function_arn, **fields):
    return {
        "Type": "Task",
        "Resource": "arn:aws:states:::lambda:invoke",
        "Arguments": {"FunctionName": function_arn, "Payload": "{% $states.input %}"},
        "Output": "{% $states.result.Payload %}",
        "End": True,
        **fields,
    }


def failing_task(**fields):
    """Sends to a queue that does not exist."""
    arguments = {"QueueUrl": "http://localhost/000000000000/none", "MessageBody": "{% $string($states.input) %}"}
    return {
        "Type": "Task", "Resource": "arn:aws:states:::sqs:sendMessage", "Arguments": arguments, "End": True, **fields
    }  # fmt: skip


# Lambda


def test_the_name_of_an_exception_is_the_error_that_a_retry_names(client, function, machine, execute):
    """Error: the name of the exception's class. Processes serve more events after one.

    https://docs.aws.amazon.com/lambda/latest/dg/python-exceptions.html
    https://docs.aws.amazon.com/step-functions/latest/dg/concepts-error-handling.html
    """
    source = (
        "calls = []\n"
        "class ImageStoreBusyError(Exception): pass\n"
        "def handler(event, context):\n"
        "    calls.append(event)\n"
        "    if len(calls) < 3: raise ImageStoreBusyError('try again')\n"
        "    return {'calls': len(calls)}\n"
    )
    once = execute(machine({"Once": invoke_task(function(source))}))
    assert (once["error"], json.loads(once["cause"])["errorMessage"]) == ("ImageStoreBusyError", "try again")
    retry = [{"ErrorEquals": ["ImageStoreBusyError"], "IntervalSeconds": 1, "MaxAttempts": 3}]
    retried = execute(machine({"Again": invoke_task(function(source), Retry=retry)}))
    assert (retried["status"], json.loads(retried["output"])) == ("SUCCEEDED", {"calls": 3})


def test_simultaneous_cold_starts_each_get_a_process(client, function):
    """https://docs.aws.amazon.com/lambda/latest/dg/lambda-concurrency.html"""
    arn = function(
        "import sys, time, uuid\n"
        "process = uuid.uuid4().hex\n"
        "def handler(event, context):\n"
        "    time.sleep(2)\n"
        "    return 'awslambdaric' in sys.modules, process\n"
    )  # fmt: skip
    with ThreadPoolExecutor(6) as pool:
        answers = pool.map(lambda _: json.load(client("lambda").invoke(FunctionName=arn)["Payload"]), range(6))
    clients, processes = zip(*answers, strict=True)
    assert set(clients) == {True} and len(set(processes)) == 6


def test_a_throttled_function_is_a_too_many_requests_exception(client, function, machine, execute):
    """https://docs.aws.amazon.com/step-functions/latest/dg/sfn-best-practices.html, transient Lambda errors"""
    arn = function("def handler(event, context): return event")
    client("lambda").put_function_concurrency(FunctionName=arn, ReservedConcurrentExecutions=0)
    assert execute(machine({"Throttled": invoke_task(arn)}))["error"] == "Lambda.TooManyRequestsException"


def test_what_is_reserved_for_a_function_holds_for_its_versions(client, function, machine, execute):
    """https://docs.aws.amazon.com/lambda/latest/dg/configuration-concurrency.html, shared by versions"""
    arn = function("def handler(event, context): return event")
    version = client("lambda").publish_version(FunctionName=arn)["FunctionArn"]
    assert execute(machine({"Free": invoke_task(version)}))["status"] == "SUCCEEDED"
    client("lambda").put_function_concurrency(FunctionName=arn, ReservedConcurrentExecutions=0)
    assert execute(machine({"Throttled": invoke_task(version)}))["error"] == "Lambda.TooManyRequestsException"


def test_what_a_state_machine_invokes_is_counted(client, function, machine, execute, seconds_to_end):
    """https://docs.aws.amazon.com/lambda/latest/dg/monitoring-metrics-types.html, Invocations and Errors"""
    arn = function("def handler(event, context): return 1 / event['divisor']")
    task = machine({"Divide": invoke_task(arn)})
    assert [execute(task, {"divisor": divisor})["status"] for divisor in (1, 0)] == ["SUCCEEDED", "FAILED"]
    now = datetime.now(UTC)

    def total(metric):
        points = client("cloudwatch").get_metric_statistics(
            Namespace="AWS/Lambda",
            MetricName=metric,
            Dimensions=[{"Name": "FunctionName", "Value": arn.split(":")[-1]}],
            StartTime=now - timedelta(minutes=5),
            EndTime=now + timedelta(minutes=5),
            Period=3600,
            Statistics=["Sum"],
        )["Datapoints"]
        return sum(point["Sum"] for point in points)

    assert eventually(lambda: (total("Invocations"), total("Errors")) == (2, 1), seconds_to_end)


def test_a_segment_reaches_the_daemon(emulator, client, function):
    """https://docs.aws.amazon.com/xray/latest/devguide/xray-api-sendingdata.html#xray-api-daemon"""
    arn = function(
        "import os, socket\n"
        "def handler(event, context):\n"
        "    host, port = os.environ['AWS_XRAY_DAEMON_ADDRESS'].split(':')\n"
        '    packet = b\'{"format": "json", "version": 1}\\n{"name": "segment"}\'\n'
        "    socket.socket(socket.AF_INET, socket.SOCK_DGRAM).sendto(packet, (host, int(port)))\n"
    )
    client("lambda").invoke(FunctionName=arn)
    arrived = eventually(lambda: emulator.segments.exists() and emulator.segments.read_text(), 2)
    assert arrived == '{"name": "segment"}\n'


# Step Functions


def delays_between_attempts(client, execution, wait_scale):
    events = client("stepfunctions").get_execution_history(executionArn=execution["executionArn"])["events"]
    failed = [event["timestamp"] for event in events if event["type"] == "TaskFailed"]
    scheduled = [event["timestamp"] for event in events if event["type"] == "TaskScheduled"]
    return [(after - before).total_seconds() / wait_scale for before, after in zip(failed, scheduled[1:], strict=False)]


def test_max_delay_seconds_limits_the_delay_of_a_retry(client, machine, execute, wait_scale):
    """https://docs.aws.amazon.com/step-functions/latest/dg/concepts-error-handling.html, MaxDelaySeconds"""
    retry = {"ErrorEquals": ["States.ALL"], "IntervalSeconds": 15, "BackoffRate": 4, "MaxDelaySeconds": 20}
    execution = execute(machine({"Task": failing_task(Retry=[retry | {"MaxAttempts": 2}])}))
    first, second = delays_between_attempts(client, execution, wait_scale)
    assert 15 <= first < 25 and 20 <= second < 30


def test_full_jitter_draws_the_delay_of_a_retry(client, machine, execute, wait_scale):
    """https://docs.aws.amazon.com/step-functions/latest/dg/concepts-error-handling.html, JitterStrategy"""
    retry = {"ErrorEquals": ["States.ALL"], "IntervalSeconds": 20, "BackoffRate": 1, "JitterStrategy": "FULL"}
    execution = execute(machine({"Task": failing_task(Retry=[retry | {"MaxAttempts": 4}])}))
    assert sum(delays_between_attempts(client, execution, wait_scale)) < 76  # 80 without jitter


def test_the_output_of_a_state_is_limited(machine, execute):
    """https://docs.aws.amazon.com/step-functions/latest/dg/service-quotas.html, 256 KiB as a UTF-8 encoded string"""
    arn = machine({"Repeat": {"Type": "Pass", "Output": "{% $states.input.text & $states.input.more %}", "End": True}})
    text = "é" * 65_000  # two bytes each
    fits = execute(arn, {"text": text, "more": text})
    assert (fits["status"], json.loads(fits["output"])) == ("SUCCEEDED", text + text)
    assert execute(arn, {"text": text[:40_000], "more": "x"})["status"] == "SUCCEEDED"
    twice = machine({"Twice": {"Type": "Pass", "Output": "{% $states.input.text & $states.input.text %}", "End": True}})
    assert execute(twice, {"text": "x" * 140_000})["error"] == "States.DataLimitExceeded"


def test_the_input_of_a_task_is_limited_and_states_all_does_not_catch_it(machine, execute):
    """https://docs.aws.amazon.com/step-functions/latest/dg/concepts-error-handling.html, States.DataLimitExceeded"""
    task = failing_task(Catch=[{"ErrorEquals": ["States.ALL"], "Next": "Caught"}])
    task["Arguments"]["MessageBody"] = "{% $states.input.text & $states.input.text %}"
    arn = machine({"Task": task, "Caught": {"Type": "Succeed"}})
    assert execute(arn, {"text": "small"})["status"] == "SUCCEEDED"
    assert execute(arn, {"text": "x" * 140_000})["error"] == "States.DataLimitExceeded"


def test_an_execution_is_logged_without_its_data(client, machine, execute):
    """https://docs.aws.amazon.com/step-functions/latest/dg/cw-logs.html"""
    expected = ["PassStateEntered", "PassStateExited", "FailStateEntered", "ExecutionFailed"]
    group = "/aws/vendedlogs/states/conformance"
    client("logs").create_log_group(logGroupName=group)
    group_arn = f"arn:aws:logs:us-east-1:000000000000:log-group:{group}:*"
    destination = {"cloudWatchLogsLogGroup": {"logGroupArn": group_arn}}
    logging = {"level": "ALL", "includeExecutionData": False, "destinations": [destination]}
    states = {
        "Pass": {"Type": "Pass", "Next": "Reject"},
        "Reject": {"Type": "Fail", "Error": "REJECTED", "Cause": "{% $states.input.text %}"},
    }
    execution = execute(machine(states, settings={"loggingConfiguration": logging}), {"text": "a picture"})

    def logged():
        events = client("logs").filter_log_events(logGroupName=group)["events"]
        return len(events) >= len(expected) and [json.loads(event["message"]) for event in events]

    events = eventually(logged, 5)
    assert [event["type"] for event in events] == expected
    assert {event["execution_arn"] for event in events} == {execution["executionArn"]}
    assert events[-1]["details"] == {"error": "REJECTED"}
    assert "a picture" not in json.dumps(events)


# CloudFormation


def test_a_stack_with_scaling_deploys(client):
    """Recorded, and not acted on: the target and the policy of an endpoint that scales.

    https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/AWS_ApplicationAutoScaling.html
    """
    target = {
        "ServiceNamespace": "sagemaker",
        "ScalableDimension": "sagemaker:variant:DesiredInstanceCount",
        "ResourceId": "endpoint/scaled/variant/AllTraffic",
        "MinCapacity": 1,
    }
    policy = {"PolicyName": "p", "PolicyType": "TargetTrackingScaling", "ScalingTargetId": {"Ref": "ScalableTarget"}}

    def template(most):
        resources = {"ScalableTarget": target | {"MaxCapacity": most}, "ScalingPolicy": policy}
        typed = {
            name: {"Type": f"AWS::ApplicationAutoScaling::{name}", "Properties": properties}
            for name, properties in resources.items()
        }
        return json.dumps({"Resources": typed, "Outputs": {"Target": {"Value": {"Ref": "ScalableTarget"}}}})

    created = deploy(client, "scaled", template(4))
    assert deploy(client, "scaled", template(8), "update") == created
    client("cloudformation").delete_stack(StackName="scaled")


def test_a_stack_with_composite_alarms_and_saved_queries_deploys(client):
    """Recorded, and not acted on: alarms on alarms and on several metrics, queries of Logs Insights.

    https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-cloudwatch-compositealarm.html
    https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-cloudwatch-alarm.html, Metrics
    https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-logs-querydefinition.html
    """
    stat = {"Metric": {"Namespace": "AWS/Lambda", "MetricName": "Throttles"}, "Stat": "Sum", "Period": 60}
    metrics = [{"Id": "all", "Expression": "one * 2"}, {"Id": "one", "MetricStat": stat, "ReturnData": False}]
    watch = {"ComparisonOperator": "GreaterThanThreshold", "EvaluationPeriods": 1, "Threshold": 1}

    def template(limit):
        resources = {
            "AWS::CloudWatch::Alarm": watch | {"Metrics": metrics, "Threshold": limit},
            "AWS::CloudWatch::CompositeAlarm": {"AlarmRule": {"Fn::Sub": "ALARM(${Alarm})"}},
            "AWS::Logs::QueryDefinition": {"Name": "q", "QueryString": "fields @message"},
        }
        typed = {
            kind.split("::")[2]: {"Type": kind, "Properties": properties} for kind, properties in resources.items()
        }
        return json.dumps({"Resources": typed, "Outputs": {"Alarm": {"Value": {"Ref": "Alarm"}}}})

    created = deploy(client, "watched", template(1))
    assert deploy(client, "watched", template(2), "update") == created
    client("cloudformation").delete_stack(StackName="watched")


# SageMaker, through CloudFormation


def upload_model(client, weights):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as file:
        member = tarfile.TarInfo("weights.txt")
        member.size = len(weights)
        file.addfile(member, io.BytesIO(weights.encode()))
    client("s3").create_bucket(Bucket="models")
    client("s3").put_object(Bucket="models", Key=f"{weights}/model.tar.gz", Body=archive.getvalue())
    return f"s3://models/{weights}/model.tar.gz"


def endpoint_template(model_data_url, name):
    variables = {"SAGEMAKER_SUBMIT_DIRECTORY": "/opt/ml/model/code", "PYTHONPATH": "/opt/ml/model/lib"}
    container = {"Image": "image", "ModelDataUrl": model_data_url, "Environment": variables}
    serverless = {"MemorySizeInMB": "2048", "MaxConcurrency": "1"}
    variant = {"VariantName": "AllTraffic", "ModelName": {"Fn::GetAtt": ["Model", "ModelName"]}}
    config_name = {"Fn::GetAtt": ["EndpointConfig", "EndpointConfigName"]}
    resources = {
        "Model": {"PrimaryContainer": container, "ExecutionRoleArn": ROLE},
        "EndpointConfig": {"ProductionVariants": [variant | {"ServerlessConfig": serverless}]},
        "Endpoint": {"EndpointName": name, "EndpointConfigName": config_name},
    }
    return json.dumps(
        {
            "Resources": {
                kind: {"Type": f"AWS::SageMaker::{kind}", "Properties": properties}
                for kind, properties in resources.items()
            },
            "Outputs": {
                "ModelRef": {"Value": {"Ref": "Model"}},
                "EndpointRef": {"Value": {"Ref": "Endpoint"}},
                "EndpointName": {"Value": {"Fn::GetAtt": ["Endpoint", "EndpointName"]}},
                "EndpointConfigName": {"Value": config_name},
            },
        }
    )


def deploy(client, name, template, action="create"):
    cloudformation = client("cloudformation")
    getattr(cloudformation, f"{action}_stack")(StackName=name, TemplateBody=template)
    waiter = cloudformation.get_waiter(f"stack_{action}_complete")
    waiter.wait(StackName=name, WaiterConfig={"Delay": 0.2, "MaxAttempts": 50})
    outputs = cloudformation.describe_stacks(StackName=name)["Stacks"][0]["Outputs"]
    return {output["OutputKey"]: output["OutputValue"] for output in outputs}


def ask(client, name, body=b"{}"):
    return client("sagemaker-runtime").invoke_endpoint(
        EndpointName=name, Body=body, ContentType="application/json", Accept="application/json"
    )


@pytest.fixture(scope="module")
def endpoint(emulator):
    deploy(emulator.client, "served", endpoint_template(upload_model(emulator.client, "first"), "served"))
    return "served"


def test_a_deployed_endpoint_serves_its_model_and_follows_its_updates(client):
    """Model and EndpointConfig are replaced, the endpoint is updated and keeps its name; Ref is the ARN.

    https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-sagemaker-endpoint.html
    https://docs.aws.amazon.com/AWSCloudFormation/latest/TemplateReference/aws-resource-sagemaker-model.html
    """
    first = deploy(client, "stack", endpoint_template(upload_model(client, "old"), "digits"))
    assert first["EndpointRef"] == "arn:aws:sagemaker:us-east-1:000000000000:endpoint/digits"
    assert first["ModelRef"].startswith("arn:aws:sagemaker:us-east-1:000000000000:model/")
    assert first["EndpointName"] == "digits"
    assert json.load(ask(client, "digits")["Body"])["weights"] == "old"
    second = deploy(client, "stack", endpoint_template(upload_model(client, "new"), "digits"), "update")
    assert first["EndpointRef"] == second["EndpointRef"] and first["ModelRef"] != second["ModelRef"]
    assert json.load(ask(client, "digits")["Body"])["weights"] == "new"
    described = client("sagemaker").describe_endpoint(EndpointName="digits")
    assert (described["EndpointStatus"], described["EndpointConfigName"]) == ("InService", second["EndpointConfigName"])
    with pytest.raises(ClientError, match="Could not find"):
        client("sagemaker").describe_endpoint_config(EndpointConfigName=first["EndpointConfigName"])
    client("cloudformation").delete_stack(StackName="stack")
    with pytest.raises(ClientError, match="Endpoint digits of account 000000000000 not found"):
        eventually(lambda: not ask(client, "digits"))


@pytest.mark.parametrize("weights, reason", [("broken", "these weights are broken"), ("missing", "Not Found")])
def test_a_model_that_does_not_start_fails_the_stack_and_says_why(client, weights, reason):
    """https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_DescribeEndpoint.html, FailureReason"""
    url = upload_model(client, weights) if weights == "broken" else "s3://models/missing/model.tar.gz"
    with pytest.raises(WaiterError):
        deploy(client, f"stack-{weights}", endpoint_template(url, weights))
    events = client("cloudformation").describe_stack_events(StackName=f"stack-{weights}")["StackEvents"]
    reasons = [event["ResourceStatusReason"] for event in events if event["ResourceStatus"] == "CREATE_FAILED"]
    assert reason in reasons[-1]


def test_a_container_gets_the_documented_variables(client, endpoint):
    """https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html"""
    answer = ask(client, endpoint)
    environment = json.load(answer["Body"])["environment"]
    assert environment["SAGEMAKER_SUBMIT_DIRECTORY"] == environment["SM_MODEL_DIR"] + "/code"
    assert environment.get("PYTHONPATH") != "/opt/ml/model/lib"
    assert (answer["InvokedProductionVariant"], answer["ContentType"]) == ("AllTraffic", "application/json")


def error_of(client, endpoint, body):
    with pytest.raises(ClientError) as error:
        ask(client, endpoint, body)
    answer = error.value.response
    return answer["ResponseMetadata"]["HTTPStatusCode"], answer["Error"]["Code"], answer


def test_the_runtime_answers_with_the_documented_errors(client, endpoint):
    """https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html#API_runtime_InvokeEndpoint_Errors
    https://docs.aws.amazon.com/sagemaker/latest/dg/serverless-endpoints.html, 4 MB and the maximum concurrency
    """
    status, code, answer = error_of(client, endpoint, b"fail")
    assert (status, code, answer["OriginalStatusCode"], answer["OriginalMessage"]) == (
        424, "ModelError", 500, "no such label",
    )  # fmt: skip
    assert error_of(client, "absent", b"{}")[:2] == (400, "ValidationError")
    assert error_of(client, endpoint, b"x" * 4_194_305)[:2] == (413, "413")
    with ThreadPoolExecutor() as pool:
        slow = pool.submit(ask, client, endpoint, b"slow")
        time.sleep(0.3)
        assert error_of(client, endpoint, b"{}")[:2] == (429, "ThrottlingException")
        assert slow.result()["ContentType"] == "application/json"
    assert error_of(client, endpoint, b"die")[:2] == (503, "ServiceUnavailable")
