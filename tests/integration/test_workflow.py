"""Images through the deployed workflow, one scenario per test."""

import base64
import functools
import io
import json
import random
from datetime import UTC, datetime, timedelta

import pytest
from PIL import Image

from workflow import DIGITS, ROOT, wait_for

SECONDS_UNTIL_DECISIONS_ARE_PUBLISHED = 60
SECONDS_UNTIL_METRICS = 300  # on AWS; the local stack has them immediately
STATES = set(json.loads((ROOT / "statemachine/classify_image.asl.json").read_text())["States"])
ACCEPTED_PATH = ["RetrieveImage", "ClassifyImage", "CheckConfidence", "IsAccepted", "PublishImageClassified"]
REJECTED_PATH = [
    "RetrieveImage",
    "ClassifyImage",
    "CheckConfidence",
    "IsAccepted",
    "SendToReview",
    "PublishImageNeedsReview",
    "ThresholdConfidenceNotMet",
]


def lambda_errors(workflow, function):
    """A function's sum of the metric Errors in AWS/Lambda."""
    request = functools.partial(
        workflow.stack.client("cloudwatch").get_metric_statistics,
        Namespace="AWS/Lambda",
        MetricName="Errors",
        Dimensions=[{"Name": "FunctionName", "Value": workflow.outputs[f"{function}FunctionName"]}],
        StartTime=datetime.now(UTC) - timedelta(hours=1),
        EndTime=datetime.now(UTC) + timedelta(minutes=1),
        Period=3600,
        Statistics=["Sum"],
    )
    points = wait_for(lambda: request()["Datapoints"], SECONDS_UNTIL_METRICS)
    return sum(point["Sum"] for point in points)


def log_lines(workflow):
    """Every line in CloudWatch Logs, by log group."""
    logs = workflow.stack.client("logs")
    groups = [group for page in logs.get_paginator("describe_log_groups").paginate() for group in page["logGroups"]]
    lines = {}
    for group in [group["logGroupName"] for group in groups]:
        pages = logs.get_paginator("filter_log_events").paginate(logGroupName=group)
        lines[group] = [event["message"] for page in pages for event in page["events"]]
    return lines


def test_an_image_with_high_confidence_is_accepted(workflow, outcome_events, seven):
    execution = workflow.classify("accepted.png", seven)
    assert (execution.status, execution.states) == ("SUCCEEDED", ACCEPTED_PATH)
    assert execution.output["label"] == "7"
    assert execution.output["confidence"] >= execution.output["threshold"] == 0.75
    assert execution.output["endpoint"] == {"name": workflow.outputs["EndpointName"], "variant": "AllTraffic"}
    assert "data" not in execution.output["image"]
    event = workflow.message_about(outcome_events, '"accepted.png"')
    assert (event["detail-type"], event["detail"]) == ("Image Classified", execution.output)
    assert sorted(event["resources"]) == sorted([workflow.machine, execution.arn])  # each once


def test_low_confidence_goes_to_review_and_is_no_function_error(workflow, outcome_events, seven):
    execution = workflow.classify("rejected.png", seven, threshold=1)
    assert (execution.status, execution.states) == ("FAILED", REJECTED_PATH)
    assert execution.error == "THRESHOLD_CONFIDENCE_NOT_MET"
    result = json.loads(execution.cause)
    assert (result["label"], result["accepted"], result["threshold"]) == ("7", False, 1)
    review = workflow.review_of(execution)
    assert (review.status, review.reason, review.selection_probability) == ("pending", "low_confidence", 1)
    shared = ("s3_key", "s3_version_id", "label", "confidence", "threshold", "predictions", "endpoint", "execution_arn")
    assert {name: getattr(review, name) for name in shared} == {name: result[name] for name in shared}
    assert review in list(workflow.reviews.pending())
    event = workflow.message_about(outcome_events, '"rejected.png"')
    assert (event["detail-type"], event["detail"]) == ("Image Needs Review", result)
    assert lambda_errors(workflow, "CheckConfidence") == 0


def test_an_audited_image_is_accepted_and_put_up_for_review(workflow, outcome_events, seven):
    execution = workflow.classify("audited.png", seven, audited=True)
    assert (execution.status, execution.states) == (
        "SUCCEEDED",
        [*ACCEPTED_PATH[:-1], "SendToAudit", ACCEPTED_PATH[-1]],
    )
    review = workflow.review_of(execution)
    assert (review.status, review.reason, review.selection_probability) == ("pending", "audit", 0.02)
    event = workflow.message_about(outcome_events, '"audited.png"')
    assert (event["detail-type"], event["detail"]) == ("Image Classified", execution.output)
    assert "review_item" not in execution.output


@pytest.mark.parametrize("audited", [True, False])
def test_another_execution_for_the_same_version_replaces_no_decision(workflow, seven, audited):
    more = {} if audited else {"threshold": 1}
    execution = workflow.classify("again.png", seven, audited=audited, **more)
    first = workflow.reviews.decide(workflow.review_of(execution), "ada", "label", "7")
    version = first.s3_version_id
    repeated = workflow.execute({"s3_bucket": workflow.bucket, "s3_key": "again.png", "s3_version_id": version, **more})
    assert (repeated.status, repeated.error, repeated.states) == (execution.status, execution.error, execution.states)
    assert "DynamoDB.ConditionalCheckFailedException" in repeated.task_errors
    assert workflow.review_of(execution) == first


def test_a_decision_becomes_an_event_and_a_line_and_so_does_its_undoing(workflow, outcome_events, seven):
    review = workflow.review_of(workflow.classify("decided.png", seven, threshold=1))
    claimed = workflow.reviews.claim(review, "grace", "a page")
    decided = workflow.reviews.decide(claimed, "grace", "label", "1")
    event = workflow.message_about(outcome_events, '"grace"', SECONDS_UNTIL_DECISIONS_ARE_PUBLISHED)
    assert event["detail-type"] == "Image Reviewed"
    assert (event["detail"]["s3_key"], event["detail"]["label"], event["detail"]["reviewed_label"]) == (
        "decided.png", "7", "1",
    )  # fmt: skip
    workflow.reviews.undo(decided, "grace")
    event = workflow.message_about(outcome_events, "Image Review Undone", SECONDS_UNTIL_DECISIONS_ARE_PUBLISHED)
    assert (event["detail"]["s3_key"], event["detail"]["revision"]) == ("decided.png", 2)
    lines = wait_for(lambda: len(found := review_lines(workflow, "decided.png")) == 2 and found)
    assert [line.get("decision") for line in lines] == ["label", None]


def review_lines(workflow, key):
    """The prediction log's lines about decisions on an image."""
    messages = log_lines(workflow)[workflow.outputs["PredictionLogGroupName"]]
    lines = [json.loads(message) for message in messages if message.startswith("{")]
    return [line for line in lines if line.get("message") == "review" and line["s3_key"] == key]


def test_a_missing_object_fails_by_name_without_a_retry(workflow):
    execution = workflow.execute({"s3_bucket": workflow.bucket, "s3_key": "nowhere.png"})
    assert (execution.status, execution.error) == ("FAILED", "ImageNotFoundError")
    assert f"s3://{workflow.bucket}/nowhere.png" in execution.message
    assert execution.task_errors == ["ImageNotFoundError"]
    assert lambda_errors(workflow, "RetrieveImage") > 0


@pytest.mark.parametrize(
    ("name", "data", "problem"),
    [
        ("text.png", b"This is not an image.", "the file is text"),
        ("empty.png", b"", "the file is empty"),
        ("truncated.png", None, "the PNG ends too early"),
    ],
    ids=["text", "empty", "truncated"],
)
def test_a_broken_image_fails_by_name(workflow, seven, name, data, problem):
    execution = workflow.classify(name, seven[:-40] if data is None else data)
    assert (execution.status, execution.error) == ("FAILED", "UnsupportedImageError")
    assert execution.message.startswith(f"s3://{workflow.bucket}/{name}: {problem}")


def test_a_large_photograph_is_shrunk_and_classified(workflow, seven):
    photograph = Image.open(io.BytesIO(seven)).resize((3000, 3000), Image.Resampling.BICUBIC).convert("RGB")
    grain = Image.frombytes("L", (3000, 3000), random.Random(0).randbytes(9_000_000)).convert("RGB")
    buffer = io.BytesIO()
    Image.blend(photograph, grain, 0.1).save(buffer, "JPEG", quality=95)
    execution = workflow.classify("photograph.jpg", buffer.getvalue(), threshold=0.01)
    assert (execution.status, execution.output["label"]) == ("SUCCEEDED", "7")
    assert execution.output["image"]["source_bytes"] == buffer.tell() > 1_000_000
    assert execution.output["image"]["resized"]
    exited = [event["stateExitedEventDetails"] for event in execution.history if "stateExitedEventDetails" in event]
    assert max(len(details["output"]) for details in exited) < 200 * 1024


def test_a_photograph_from_a_rotated_camera_is_classified_upright(workflow, seven):
    exif = Image.Exif()
    exif[0x0112] = 6  # to be rotated 90 degrees clockwise
    turned = Image.open(io.BytesIO(seven)).transpose(Image.Transpose.ROTATE_90)
    buffer = io.BytesIO()
    turned.save(buffer, "PNG", exif=exif)
    upright = workflow.classify("upright.png", seven).output
    assert workflow.classify("turned.png", buffer.getvalue()).output["predictions"] == upright["predictions"]


def test_an_endpoint_that_is_down_for_six_attempts_is_retried_and_the_image_is_classified(workflow, endpoint, seven):
    endpoint.hang_up(times=6)
    execution = workflow.classify("down.png", seven)
    assert execution.status == "SUCCEEDED"
    assert execution.task_errors == ["EndpointUnavailableError"] * 6


def test_a_throttled_endpoint_is_retried_and_the_image_is_classified(workflow, endpoint, seven):
    endpoint.respond(b'{"message": "Rate exceeded"}', status=429, error="ThrottlingException")
    execution = workflow.classify("throttled.png", seven)
    assert execution.status == "SUCCEEDED"
    assert execution.task_errors == ["EndpointThrottledError"]
    scheduled = [event for event in execution.history if event["type"] == "TaskScheduled"]
    assert len(scheduled) == 5  # four tasks, one of them twice


@pytest.mark.parametrize(
    "body",
    [b"<html>It works!</html>", b'{"predictions": [{"label": "7", "probability": NaN}]}', b"[]", b"[0.1, 0.9]"],
    ids=["html", "not a number", "nothing", "no labels"],
)
def test_a_nonsensical_response_fails_by_name_and_is_never_accepted(workflow, endpoint, seven, body):
    endpoint.respond(body)
    execution = workflow.classify("nonsense.png", seven)
    assert (execution.status, execution.error) == ("FAILED", "EndpointResponseError")
    assert execution.task_errors == ["EndpointResponseError"]


def test_an_execution_can_override_the_threshold(workflow):
    """With the image of the lowest confidence among those of the validation set that make run shows."""
    image = sorted((DIGITS / "validation/8").iterdir())[0].read_bytes()
    accepted, rejected = (workflow.classify("own.png", image, threshold=threshold) for threshold in (0.01, 1.0))
    assert (accepted.status, accepted.output["threshold"]) == ("SUCCEEDED", 0.01)
    assert (rejected.error, json.loads(rejected.cause)["threshold"]) == ("THRESHOLD_CONFIDENCE_NOT_MET", 1)


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        ({}, "s3_bucket"),
        ({"s3_bucket": "b", "s3_key": ""}, "s3_key"),
        ({"s3_bucket": "b", "s3_key": "k", "threshold": 2}, "threshold"),
    ],
)
def test_invalid_input_fails_with_the_name_of_its_field(workflow, request_, problem):
    execution = workflow.execute(request_)
    assert (execution.status, execution.error) == ("FAILED", "InvalidInputError")
    assert problem in execution.message


def test_other_keys_of_the_input_are_dropped(workflow, seven):
    execution = workflow.classify("more.png", seven, image_data="x" * 200_000)
    assert (execution.status, "image_data" in execution.output) == ("SUCCEEDED", False)


@pytest.mark.parametrize("name", ["two words.png", "a+b.png", "50%.png", "a%20b.png", "größe/猫.png", "a&b=c?#.png"])
def test_an_upload_starts_an_execution_whatever_its_key(workflow, seven, name):
    key = workflow.upload(workflow.outputs["UploadPrefix"] + name, seven)
    execution = workflow.started_by_upload(key)
    assert (execution.status, execution.output["s3_key"]) == ("SUCCEEDED", key)


def test_an_overwritten_image_is_classified_as_it_was_uploaded(workflow, seven):
    key = workflow.outputs["UploadPrefix"] + "overwritten.png"
    put = [workflow.s3.put_object(Bucket=workflow.bucket, Key=key, Body=body) for body in (seven, b"no image")]
    started = [workflow.started_by_upload(key, response["VersionId"]) for response in put]
    assert [execution.status for execution in started] == ["SUCCEEDED", "FAILED"]
    assert started[0].output["s3_version_id"] == put[0]["VersionId"]


def test_an_object_outside_the_prefix_or_a_folder_starts_no_execution(workflow, seven):
    outside = {"results/uploads/outside.png": seven, "uploads": seven, "uploads/folder/": b""}
    keys = [workflow.upload(key, content) for key, content in outside.items()]
    workflow.started_by_upload(workflow.upload("uploads/after.png", seven))  # after the others have had time
    inputs = [
        workflow.states.describe_execution(executionArn=row["executionArn"])["input"]
        for page in workflow.states.get_paginator("list_executions").paginate(stateMachineArn=workflow.machine)
        for row in page["executions"]
    ]
    assert not [key for key in keys for text in inputs if json.dumps(key) in text]


def test_a_burst_at_low_concurrency_loses_no_image(workflow, seven):
    function = workflow.outputs["RetrieveImageFunctionName"]
    functions = workflow.stack.client("lambda")
    functions.put_function_concurrency(FunctionName=function, ReservedConcurrentExecutions=1)
    try:
        keys = [workflow.upload(f"uploads/burst/{number}.png", seven) for number in range(8)]
        executions = [workflow.started_by_upload(key) for key in keys]
    finally:
        functions.delete_function_concurrency(FunctionName=function)
    assert [execution.status for execution in executions] == ["SUCCEEDED"] * 8
    assert "Lambda.TooManyRequestsException" in [error for execution in executions for error in execution.task_errors]


def test_technical_failures_reach_the_failure_queue_and_low_confidence_does_not(workflow, seven):
    rejected = workflow.classify("low.png", seven, threshold=1)
    failed = workflow.classify("broken.png", b"no image")
    failures = workflow.outputs["FailureQueueUrl"]
    assert workflow.message_about(failures, failed.arn)["detail"]["error"] == "UnsupportedImageError"
    assert workflow.message_about(failures, rejected.arn, seconds=1) is None


def test_every_outcome_is_a_line_in_the_prediction_log(workflow, seven):
    accepted = workflow.classify("recorded.png", seven)
    rejected = workflow.classify("recorded.png", seven, threshold=1)
    failed = workflow.classify("recorded.txt", b"no image")

    def line_of(execution):
        lines = [line for line in prediction_lines(workflow) if line["execution_arn"] == execution.arn]
        return lines and lines[0]

    lines = [wait_for(lambda execution=execution: line_of(execution)) for execution in (accepted, rejected, failed)]
    assert [line["outcome"] for line in lines] == ["accepted", "review", "error"]
    assert [line["s3_key"] for line in lines] == ["recorded.png", "recorded.png", "recorded.txt"]
    assert (lines[0]["label"], lines[0]["confidence"]) == ("7", accepted.output["confidence"])
    assert (lines[2]["error"], lines[2]["cause"]) == (failed.error, failed.message)


def prediction_lines(workflow):
    messages = log_lines(workflow)[workflow.outputs["PredictionLogGroupName"]]
    lines = [json.loads(message) for message in messages if message.startswith("{")]
    return [line for line in lines if line.get("message") == "prediction"]


def test_every_log_line_names_its_execution_and_its_trace_is_annotated(workflow, stack, seven):
    execution = workflow.classify("led.png", seven)
    wait_for(lambda: execution.arn in [line["execution_arn"] for line in prediction_lines(workflow)])
    text = log_text(workflow)
    lines = [json.loads(line) for line in text.splitlines() if line.startswith('{"level"')]
    ours = [line for line in lines if line.get("correlation_id") == execution.arn]
    assert [line["message"] for line in sorted(ours, key=lambda line: line["timestamp"])] == [
        "image retrieved",
        "image classified",
        "confidence checked",
        "prediction",
    ]
    traces = {line.get("xray_trace_id") or line["trace_id"] for line in ours}
    assert len(traces) == 1
    segments = [json.loads(line) for line in (stack.directory / "xray.jsonl").read_text().splitlines()]
    annotations = [segment.get("annotations", {}) for segment in segments if segment.get("trace_id") in traces]
    merged = {name: value for annotation in annotations for name, value in annotation.items()}
    assert (merged["s3_bucket"], merged["label"], merged["accepted"]) == (workflow.bucket, "7", True)
    assert len(merged["s3_key_hash"]) == 16


def test_image_bytes_are_in_the_history_but_not_in_logs_traces_or_the_output(workflow, stack):
    """The history contains the image, as docs/operations.md says."""
    noise = Image.frombytes("RGB", (40, 40), random.Random(7).randbytes(4800))
    buffer = io.BytesIO()
    noise.save(buffer, "PNG")
    data = base64.b64encode(buffer.getvalue()).decode()
    chunks = [data[start : start + 24] for start in range(0, len(data) - 24, 24)]

    def holds_image(text):
        return any(chunk in text for chunk in chunks)

    execution = workflow.classify("secret.png", buffer.getvalue(), threshold=0.0001)
    segments = wait_for(lambda: "secret.png" in (text := log_text(workflow)) and text)
    traces = (stack.directory / "xray.jsonl").read_text()
    server_logs = "".join(path.read_text() for path in (stack.directory / "sagemaker").glob("*/server.log"))
    assert "capture_lambda_handler" in traces or "lambda_handler" in traces
    assert holds_image(str(execution.history))
    for text in (segments, traces, server_logs, json.dumps(execution.output)):
        assert text
        assert not holds_image(text)


def log_text(workflow):
    lines = log_lines(workflow)
    assert any("vendedlogs/states" in group and messages for group, messages in lines.items())
    return "\n".join(line for messages in lines.values() for line in messages)


def test_every_state_was_visited_by_the_tests_above(workflow):
    assert workflow.visited == STATES
