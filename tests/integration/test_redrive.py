"""What failed is started again from the failure queue."""

import contextlib
import json
import time

import pytest

from local.redrive import Redrive
from test_delivery import queue_of, wait_for_record_outcome
from test_workflow import prediction_lines
from workflow import wait_for

OUTAGE = 5  # seconds: 100 at the stack's shortened waits


@pytest.fixture
def redrive(workflow, failure_queue):
    """Each call is one command."""
    return lambda: Redrive(workflow.stack.client, workflow.outputs)


def waiting(workflow):
    url = workflow.outputs["FailureQueueUrl"]
    names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
    attributes = workflow.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"]
    return sum(map(int, attributes.values()))


def test_executions_survive_an_outage_of_the_endpoint(workflow, endpoint, seven):
    with endpoint.outage():
        keys = [workflow.upload(f"uploads/outage/{number}.png", seven) for number in range(5)]
        time.sleep(OUTAGE)
    assert [workflow.started_by_upload(key).status for key in keys] == ["SUCCEEDED"] * 5


def test_a_failed_execution_is_started_again_and_its_message_deleted(workflow, redrive, endpoint, seven):
    endpoint.respond(b"{}", times=1)
    failed = workflow.classify("redriven.png", seven)
    assert failed.error == "EndpointResponseError"
    wait_for(lambda: waiting(workflow) == 1)
    done, left = redrive().run()
    assert (dict(done), left) == ({"executions": 1}, [])
    again = workflow.ended(f"{failed.arn}-redrive-1")
    assert (again.status, again.input) == ("SUCCEEDED", failed.input)
    assert waiting(workflow) == 0
    assert redrive().run() == ({}, [])


def test_what_fails_again_returns_to_the_queue_under_its_next_name(workflow, redrive):
    failed = workflow.classify("never.png", b"no image")
    for number in (1, 2):
        wait_for(lambda: waiting(workflow) == 1)
        assert redrive().run()[0] == {"executions": 1}
        assert workflow.ended(f"{failed.arn}-redrive-{number}").error == "UnsupportedImageError"
    wait_for(lambda: waiting(workflow) == 1)


def test_an_interrupted_redrive_starts_nothing_twice(workflow, redrive, seven):
    failed = workflow.execute({"s3_bucket": workflow.bucket, "s3_key": "later.png"})
    workflow.upload("later.png", seven)
    wait_for(lambda: waiting(workflow) == 1)
    request = json.dumps(failed.input)
    name = f"{failed.arn.rpartition(':')[2]}-redrive-1"
    workflow.states.start_execution(stateMachineArn=workflow.machine, name=name, input=request)
    assert redrive().run() == ({"executions": 1}, [])
    assert workflow.ended(f"{failed.arn}-redrive-1").status == "SUCCEEDED"
    assert waiting(workflow) == 0


@contextlib.contextmanager
def record_outcome_throttled(workflow):
    functions, name = workflow.stack.client("lambda"), workflow.outputs["RecordOutcomeFunctionName"]
    functions.put_function_concurrency(FunctionName=name, ReservedConcurrentExecutions=0)
    yield
    functions.delete_function_concurrency(FunctionName=name)


def lines_of(workflow, execution):
    """The execution's lines in the prediction log, once no outcome is being recorded."""
    wait_for_record_outcome(workflow)
    return [line for line in prediction_lines(workflow) if line["execution_arn"] == execution.arn]


def start_record_outcome(workflow, event):
    machine = workflow.outputs["RecordOutcomeStateMachineArn"]
    workflow.states.start_execution(stateMachineArn=machine, input=json.dumps(event))


def test_an_outcome_that_was_claimed_but_not_recorded_is_redriven_once(workflow, redrive, failure_queue, seven):
    with record_outcome_throttled(workflow):
        execution = workflow.classify("unrecorded.png", seven)
        wait_for(lambda: waiting(workflow) == 1)
        (message,) = workflow.sqs.receive_message(QueueUrl=failure_queue, VisibilityTimeout=0)["Messages"]
        event = json.loads(message["Body"])
        not_recorded = event.pop("not_recorded")
        assert not_recorded["error"] == "Lambda.TooManyRequestsException"
        assert redrive().run() == ({"outcomes": 1}, [])  # too early: it returns to the queue
        wait_for(lambda: waiting(workflow) == 1)
    start_record_outcome(workflow, event)  # EventBridge delivers it again
    assert lines_of(workflow, execution) == []  # it is claimed
    for _ in range(2):
        assert redrive().run() == ({"outcomes": 1}, [])
        assert len(lines_of(workflow, execution)) == 1
        workflow.sqs.send_message(QueueUrl=failure_queue, MessageBody=message["Body"])  # as if it were interrupted
    assert redrive().run() == ({"outcomes": 1}, [])
    assert len(lines_of(workflow, execution)) == 1
    assert waiting(workflow) == 0


@pytest.fixture
def ends(workflow):
    with queue_of(workflow, "redrive-ends", {"source": ["aws.states"], "detail": {"status": ["SUCCEEDED"]}}) as queue:
        yield queue


def test_an_event_that_eventbridge_could_not_deliver_is_recorded_once(workflow, redrive, failure_queue, ends, seven):
    recorded = workflow.classify("delivered.png", seven)
    event = wait_for(lambda: workflow.message_about(ends, recorded.arn))
    lost = event | {"detail": event["detail"] | {"executionArn": f"{recorded.arn}-lost", "status": "TIMED_OUT"}}
    attributes = {"ERROR_CODE": {"DataType": "String", "StringValue": "THROTTLING"}}  # EventBridge's, among others
    for each in (event, lost, lost):
        workflow.sqs.send_message(QueueUrl=failure_queue, MessageBody=json.dumps(each), MessageAttributes=attributes)
    assert redrive().run() == ({"outcomes": 3}, [])
    assert len(lines_of(workflow, recorded)) == 1
    arns = [line["execution_arn"] for line in prediction_lines(workflow)]
    assert arns.count(f"{recorded.arn}-lost") == 1
    assert waiting(workflow) == 0


def test_an_upload_that_started_no_execution_is_passed_on_and_what_is_no_event_stays(
    workflow, redrive, event_of_upload, seven
):
    queue = workflow.outputs["FailureQueueUrl"]
    key = workflow.upload("rejected/seven.png", seven)
    workflow.sqs.send_message(QueueUrl=queue, MessageBody=json.dumps(event_of_upload(key)))
    unpublished = {"DDBStreamBatchInfo": {"shardId": "1", "batchSize": 1}}  # from RecordReview's event source mapping
    for body in ("no event", json.dumps(unpublished)):
        workflow.sqs.send_message(QueueUrl=queue, MessageBody=body)
    done, left = redrive().run()
    assert dict(done) == {"uploads": 1}
    assert {reason.endswith("is no event") for reason in left} == {True, False}
    assert {reason.endswith("the review table has them") for reason in left} == {True, False}
    assert workflow.started_by_upload(key).status == "SUCCEEDED"
    assert waiting(workflow) == 2  # what could not be redriven


def test_a_failed_batch_is_left_with_the_command_that_redrives_it(workflow, redrive):
    machine = workflow.outputs["ClassifyBatchStateMachineArn"]

    def batches():
        pages = workflow.states.get_paginator("list_executions").paginate(stateMachineArn=machine)
        return {row["executionArn"] for page in pages for row in page["executions"]}

    before = batches()
    arn = workflow.states.start_execution(stateMachineArn=machine, input="{}")["executionArn"]
    wait_for(lambda: waiting(workflow) == 1)
    command = f"make batch EXECUTION={arn.rpartition(':')[2]} REDRIVE=true"
    assert redrive().run() == ({}, [f"a batch: {command}, then delete its message"])
    assert waiting(workflow) == 1
    assert batches() - before == {arn}


@pytest.fixture
def event_of_upload(workflow):
    def event(key):
        uploaded = {"key": key, "size": 1, "sequencer": key}
        return {"source": "aws.s3", "detail": {"bucket": {"name": workflow.bucket}, "object": uploaded}}

    return event
