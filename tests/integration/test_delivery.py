"""EventBridge delivers at least once and in any order: each object version has one execution and one outcome."""

import contextlib
import json
import random
from concurrent.futures import ThreadPoolExecutor

import pytest

from test_workflow import prediction_lines
from workflow import DIGITS, wait_for

OBJECTS, COPIES = 100, 5  # 500 events
SECONDS_FOR_ALL = 240


def received(workflow, queue, contains, count, seconds=SECONDS_FOR_ALL):
    """The distinct messages of a queue with this text, once there are `count`; then those of one more second."""
    found = {}

    def receive():
        response = workflow.sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10, VisibilityTimeout=600)
        found.update({message["MessageId"]: message["Body"] for message in response.get("Messages", [])})
        return [json.loads(body) for body in found.values() if contains in body]

    wait_for(lambda: len(receive()) >= count, seconds)
    for _ in range(20):
        receive()
    return receive()


@contextlib.contextmanager
def queue_of(workflow, name, pattern):
    """A queue that receives the events of this pattern."""
    queue = workflow.sqs.create_queue(QueueName=name)["QueueUrl"]
    arn = workflow.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    events = workflow.stack.client("events")
    events.put_rule(Name=name, EventPattern=json.dumps(pattern))
    events.put_targets(Rule=name, Targets=[{"Id": "queue", "Arn": arn}])
    yield queue
    events.remove_targets(Rule=name, Ids=["queue"])
    events.delete_rule(Name=name)


@pytest.fixture
def ends(workflow):
    """A queue that receives the event of every execution that ends."""
    pattern = {"source": ["aws.states"], "detail": {"status": ["SUCCEEDED", "FAILED", "TIMED_OUT", "ABORTED"]}}
    with queue_of(workflow, "ends", pattern) as queue:
        yield queue


def deliver(events, target):
    """Call a target as EventBridge does, with every event several times and in a random order."""
    copies = random.Random(0).sample(events * COPIES, len(events) * COPIES)
    with ThreadPoolExecutor(8) as pool:
        return list(pool.map(lambda event: wait_for(lambda: target(json.dumps(event)), SECONDS_FOR_ALL), copies))


def start_execution(workflow):
    """The function StartExecution as a target."""
    client = workflow.stack.client("lambda")
    request = {"FunctionName": workflow.outputs["StartExecutionFunctionName"], "Qualifier": "live"}

    def invoke(event):
        with contextlib.suppress(client.exceptions.TooManyRequestsException):
            return json.load(client.invoke(**request, Payload=event)["Payload"])

    return invoke


def record_outcome(workflow):
    """The state machine RecordOutcome as a target."""
    request = {"stateMachineArn": workflow.outputs["RecordOutcomeStateMachineArn"]}
    return lambda event: workflow.states.start_execution(**request, input=event)


def wait_for_record_outcome(workflow):
    """Wait until its executions have ended: the emulator lists those that run; AWS lists no Express executions."""
    machine = workflow.outputs["RecordOutcomeStateMachineArn"]
    wait_for(lambda: not workflow.states.list_executions(stateMachineArn=machine)["executions"], SECONDS_FOR_ALL)


def test_500_duplicated_and_reordered_events_have_one_outcome_each(workflow, outcome_events, ends):
    files = sorted((DIGITS / "test").glob("*/*.png"))[::3][: OBJECTS - 10]
    images = {f"delivery/{number}.png": path.read_bytes() for number, path in enumerate(files)}
    images |= {f"delivery/{number}.txt": b"no image" for number in range(10)}
    uploads = []
    for key, data in images.items():
        stored = workflow.s3.put_object(Bucket=workflow.bucket, Key=key, Body=data)
        described = {"key": key, "size": len(data), "etag": stored["ETag"].strip('"'), "sequencer": key}
        if "VersionId" in stored:
            described["version-id"] = stored["VersionId"]
        uploads.append({"source": "aws.s3", "detail": {"bucket": {"name": workflow.bucket}, "object": described}})
    answers = deliver(uploads, start_execution(workflow))
    assert len({answer["name"] for answer in answers}) == OBJECTS

    ended = received(workflow, ends, "delivery/", OBJECTS)
    assert len({event["detail"]["executionArn"] for event in ended}) == len(ended) == OBJECTS
    deliver(ended, record_outcome(workflow))  # EventBridge does too
    wait_for_record_outcome(workflow)

    lines = wait_for(lambda: len(found := lines_of(workflow)) >= OBJECTS and found)
    assert len({line["execution_arn"] for line in lines}) == len(lines) == OBJECTS
    count = {outcome: sum(line["outcome"] == outcome for line in lines) for outcome in ("accepted", "review", "error")}
    assert count["error"] == 10 and count["accepted"] > 70
    decided = received(workflow, outcome_events, "delivery/", OBJECTS - 10)
    assert len({event["detail"]["s3_key"] for event in decided}) == len(decided) == OBJECTS - 10
    if count["review"]:
        reviews = [review for review in workflow.reviews.pending() if review.s3_key.startswith("delivery/")]
        assert sum(review.reason == "low_confidence" for review in reviews) == count["review"]


def lines_of(workflow):
    return [line for line in prediction_lines(workflow) if line.get("s3_key", "").startswith("delivery/")]


def test_an_upload_that_is_delivered_again_after_its_execution_starts_no_other(workflow, seven):
    key = workflow.upload("uploads/once.png", seven)
    execution = workflow.started_by_upload(key)
    name = execution.arn.rpartition(":")[2]
    with pytest.raises(workflow.states.exceptions.ExecutionAlreadyExists):
        workflow.states.start_execution(stateMachineArn=workflow.machine, name=name, input=json.dumps(execution.input))


def test_an_empty_object_that_is_no_folder_ends_in_an_execution_with_a_named_error(workflow):
    execution = workflow.started_by_upload(workflow.upload("uploads/empty.png", b""))
    assert (execution.status, execution.error) == ("FAILED", "UnsupportedImageError")
    assert "the file is empty" in execution.message
