"""Lambda, as AWS documents it."""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta

from resources import eventually, invoke_task


def test_a_retry_matches_the_class_name_of_an_exception(client, function, machine, execute):
    """The error is the name of the exception's class, and the process survives it.

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
        results = pool.map(lambda _: json.load(client("lambda").invoke(FunctionName=arn)["Payload"]), range(6))
    on_awslambdaric, processes = zip(*results, strict=True)
    assert set(on_awslambdaric) == {True} and len(set(processes)) == 6


def test_a_throttled_invocation_fails_with_too_many_requests_exception(client, function, machine, execute):
    """https://docs.aws.amazon.com/step-functions/latest/dg/sfn-best-practices.html, transient Lambda errors"""
    arn = function("def handler(event, context): return event")
    client("lambda").put_function_concurrency(FunctionName=arn, ReservedConcurrentExecutions=0)
    assert execute(machine({"Throttled": invoke_task(arn)}))["error"] == "Lambda.TooManyRequestsException"


def test_an_event_for_a_throttled_function_is_kept_and_tried_again(client, function, seconds_to_end):
    """https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-error-handling.html"""
    arn = function("import boto3\ndef handler(event, context): boto3.client('sqs').create_queue(QueueName='kept')")
    client("lambda").put_function_concurrency(FunctionName=arn, ReservedConcurrentExecutions=0)
    client("events").put_rule(Name="kept", EventPattern=json.dumps({"source": ["kept"]}))
    client("events").put_targets(Rule="kept", Targets=[{"Id": "function", "Arn": arn}])
    client("events").put_events(Entries=[{"Source": "kept", "DetailType": "kept", "Detail": "{}"}])
    time.sleep(1.5)  # at least one attempt has been throttled
    assert not client("sqs").list_queues(QueueNamePrefix="kept").get("QueueUrls")
    client("lambda").delete_function_concurrency(FunctionName=arn)
    assert eventually(lambda: client("sqs").list_queues(QueueNamePrefix="kept").get("QueueUrls"), seconds_to_end)


def test_reserved_concurrency_applies_to_every_version_of_a_function(client, function, machine, execute):
    """https://docs.aws.amazon.com/lambda/latest/dg/configuration-concurrency.html, shared by versions"""
    arn = function("def handler(event, context): return event")
    version = client("lambda").publish_version(FunctionName=arn)["FunctionArn"]
    assert execute(machine({"Free": invoke_task(version)}))["status"] == "SUCCEEDED"
    client("lambda").put_function_concurrency(FunctionName=arn, ReservedConcurrentExecutions=0)
    assert execute(machine({"Throttled": invoke_task(version)}))["error"] == "Lambda.TooManyRequestsException"


def test_invocations_by_a_state_machine_are_counted(client, function, machine, execute, seconds_to_end):
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
