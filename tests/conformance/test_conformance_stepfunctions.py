"""Step Functions, as AWS documents it."""

import json

import pytest
from botocore.exceptions import ClientError

from resources import eventually, failing_task, invoke_task


def delays_between_attempts(client, execution, wait_scale):
    events = client("stepfunctions").get_execution_history(executionArn=execution["executionArn"])["events"]
    failed = [event["timestamp"] for event in events if event["type"] == "TaskFailed"]
    scheduled = [event["timestamp"] for event in events if event["type"] == "TaskScheduled"]
    return [(after - before).total_seconds() / wait_scale for before, after in zip(failed, scheduled[1:], strict=False)]


def queue_of_events_from(client, source):
    """A queue that receives the events of this source."""
    events, sqs = client("events"), client("sqs")
    name = f"conformance-{source.replace('.', '-')}"
    url = sqs.create_queue(QueueName=name)["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    events.put_rule(Name=name, EventPattern=json.dumps({"source": [source]}))
    events.put_targets(Rule=name, Targets=[{"Id": "queue", "Arn": arn}])
    return url


@pytest.fixture
def queue_of_events(client):
    return queue_of_events_from(client, "conformance")


@pytest.fixture
def queue_of_statuses(client):
    return queue_of_events_from(client, "aws.states")


def test_max_delay_seconds_limits_the_delay_of_a_retry(client, machine, execute, wait_scale):
    """https://docs.aws.amazon.com/step-functions/latest/dg/concepts-error-handling.html, MaxDelaySeconds"""
    retry = {"ErrorEquals": ["States.ALL"], "IntervalSeconds": 15, "BackoffRate": 4, "MaxDelaySeconds": 20}
    execution = execute(machine({"Task": failing_task(Retry=[retry | {"MaxAttempts": 2}])}))
    first, second = delays_between_attempts(client, execution, wait_scale)
    assert 15 <= first < 25 and 20 <= second < 30


def test_full_jitter_randomises_the_delay_of_a_retry(client, machine, execute, wait_scale):
    """https://docs.aws.amazon.com/step-functions/latest/dg/concepts-error-handling.html, JitterStrategy"""
    retry = {"ErrorEquals": ["States.ALL"], "IntervalSeconds": 20, "BackoffRate": 1, "JitterStrategy": "FULL"}
    execution = execute(machine({"Task": failing_task(Retry=[retry | {"MaxAttempts": 4}])}))
    assert sum(delays_between_attempts(client, execution, wait_scale)) < 76  # 80 without jitter


def test_the_output_of_a_state_has_a_maximum_size(machine, execute):
    """https://docs.aws.amazon.com/step-functions/latest/dg/service-quotas.html, 256 KiB as a UTF-8 encoded string"""
    arn = machine({"Repeat": {"Type": "Pass", "Output": "{% $states.input.text & $states.input.more %}", "End": True}})
    text = "é" * 65_000  # two bytes each
    fits = execute(arn, {"text": text, "more": text})
    assert (fits["status"], json.loads(fits["output"])) == ("SUCCEEDED", text + text)
    assert execute(arn, {"text": text[:40_000], "more": "x"})["status"] == "SUCCEEDED"
    twice = machine({"Twice": {"Type": "Pass", "Output": "{% $states.input.text & $states.input.text %}", "End": True}})
    assert execute(twice, {"text": "x" * 140_000})["error"] == "States.DataLimitExceeded"


def test_the_input_of_a_task_has_a_maximum_size_and_states_all_does_not_catch_the_error(machine, execute):
    """https://docs.aws.amazon.com/step-functions/latest/dg/concepts-error-handling.html, States.DataLimitExceeded"""
    task = failing_task(Catch=[{"ErrorEquals": ["States.ALL"], "Next": "Caught"}])
    task["Arguments"]["MessageBody"] = "{% $states.input.text & $states.input.text %}"
    arn = machine({"Task": task, "Caught": {"Type": "Succeed"}})
    assert execute(arn, {"text": "small"})["status"] == "SUCCEEDED"
    assert execute(arn, {"text": "x" * 140_000})["error"] == "States.DataLimitExceeded"


def test_an_event_names_its_state_machine_and_execution(client, machine, execute, queue_of_events):
    """https://docs.aws.amazon.com/step-functions/latest/dg/connect-eventbridge.html, the Resources field"""
    entry = {"Source": "conformance", "DetailType": "Test", "Detail": {}, "Resources": ["arn:aws:test"]}
    task = {"Type": "Task", "Resource": "arn:aws:states:::events:putEvents", "Arguments": {"Entries": [entry]}}
    arn = machine({"Publish": task | {"End": True}})
    execution = execute(arn)
    assert execution["status"] == "SUCCEEDED"
    received = eventually(lambda: client("sqs").receive_message(QueueUrl=queue_of_events).get("Messages"))
    resources = json.loads(received[0]["Body"])["resources"]
    assert sorted(resources) == sorted(["arn:aws:test", arn, execution["executionArn"]])


def test_an_express_execution_emits_no_events_and_leaves_no_history(client, machine, execute, queue_of_statuses):
    """https://docs.aws.amazon.com/step-functions/latest/dg/choosing-workflow-type.html: history, events"""
    states = client("stepfunctions")
    wait = {"Wait": {"Type": "Wait", "Seconds": 1, "End": True}}
    express = states.start_execution(stateMachineArn=machine(wait, settings={"type": "EXPRESS"}))["executionArn"]
    standard = execute(machine(wait))["executionArn"]
    received = set()

    def statuses():
        for message in (
            client("sqs").receive_message(QueueUrl=queue_of_statuses, MaxNumberOfMessages=10).get("Messages", [])
        ):
            detail = json.loads(message["Body"])["detail"]
            received.add((detail["executionArn"], detail["status"]))
        return received

    assert eventually(lambda: (standard, "SUCCEEDED") in statuses())
    assert express not in {arn for arn, _ in statuses()}
    with pytest.raises(ClientError):
        states.describe_execution(executionArn=express)


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
    execution = execute(machine(states, settings={"loggingConfiguration": logging}), {"text": "an image"})

    def logged():
        events = client("logs").filter_log_events(logGroupName=group)["events"]
        return len(events) >= len(expected) and [json.loads(event["message"]) for event in events]

    events = eventually(logged, 5)
    assert [event["type"] for event in events] == expected
    assert {event["execution_arn"] for event in events} == {execution["executionArn"]}
    assert events[-1]["details"] == {"error": "REJECTED"}
    assert "an image" not in json.dumps(events)


def test_the_functions_of_an_execution_share_its_trace(machine, execute, function):
    """https://docs.aws.amazon.com/step-functions/latest/dg/concepts-xray-tracing.html"""
    source = "import os\ndef handler(event, context): return event | {event['n']: os.environ['_X_AMZN_TRACE_ID']}\n"
    arn = function(source, TracingConfig={"Mode": "Active"})
    first = invoke_task(arn, Next="Second") | {"Output": "{% $merge([$states.result.Payload, {'n': 'second'}]) %}"}
    del first["End"]
    states = machine({"First": first, "Second": invoke_task(arn)}, settings={"tracingConfiguration": {"enabled": True}})
    roots = []
    for _ in range(2):
        output = json.loads(execute(states, {"n": "first"})["output"])
        headers = [dict(field.split("=") for field in output[name].split(";")) for name in ("first", "second")]
        assert headers[0]["Root"] == headers[1]["Root"] and headers[0]["Parent"] != headers[1]["Parent"]
        roots.append(headers[0]["Root"])
    assert roots[0] != roots[1]
