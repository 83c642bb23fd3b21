import gc
import json

import pytest

import record_outcome
from prediction_log import MAX_PREDICTIONS

ARN = "arn:aws:states:us-east-1:123456789012:execution:image-classification-ClassifyImageStateMachine:"
ARN += "17793124-05d4-b198-2fde-7ededc63b103"
REQUESTED = {"s3_bucket": "images", "s3_key": "uploads/seven.png"}


def ended(event, status, **detail):
    ending = event("record_outcome")
    ending["detail"] |= {"status": status, "output": None, **detail}
    return ending


def result_in(event):
    return json.loads(event("record_outcome")["detail"]["output"])


def metrics_in(printed):
    """Every printed metric: {(name, dimensions): value}."""
    found = {}
    for line in map(json.loads, printed.splitlines()):
        for group in line.get("_aws", {}).get("CloudWatchMetrics", []):
            assert group["Namespace"] == "ImageClassification"
            dimensions = tuple((name, line[name]) for name in sorted(group["Dimensions"][0]) if name != "service")
            found |= {(metric["Name"], *dimensions): line[metric["Name"]] for metric in group["Metrics"]}
    return found


def test_an_accepted_image_is_logged_and_counted(event, context, capsys, log):
    written = log(record_outcome)
    line = record_outcome.lambda_handler(event("record_outcome"), context)
    result = result_in(event)
    assert line == {
        "outcome": "accepted",
        "s3_bucket": "images",
        "s3_key": "uploads/seven.png",
        "execution_arn": ARN,
        **{key: result[key] for key in ("label", "confidence", "threshold", "endpoint", "image", "predictions")},
    }
    logged = json.loads(written.getvalue())
    assert logged["message"] == "prediction"
    assert {key: logged[key] for key in line} == line
    assert (logged["correlation_id"], logged["milliseconds"]) == (ARN, 1200)
    assert metrics_in(capsys.readouterr().out) == {
        ("Images",): [1],
        ("Accepted",): [1],
        ("ForReview",): [0],
        ("Confidence",): [0.97],
        ("LabelConfidence", ("label", "7")): [0.97],
    }


def test_garbage_is_collected_once_everything_is_imported():
    assert gc.isenabled()


def test_an_image_for_review_is_logged_and_counted_but_is_no_failure(event, context, capsys):
    result = result_in(event) | {"accepted": False, "threshold": 0.99}
    rejected = ended(event, "FAILED", error="THRESHOLD_CONFIDENCE_NOT_MET", cause=json.dumps(result))
    line = record_outcome.lambda_handler(rejected, context)
    assert (line["outcome"], line["label"], line["threshold"]) == ("review", "7", 0.99)
    counted = metrics_in(capsys.readouterr().out)
    assert (counted[("Accepted",)], counted[("ForReview",)]) == ([0], [1])
    assert ("Failed",) not in counted


@pytest.mark.parametrize(
    ("status", "detail", "error", "cause"),
    [
        (
            "FAILED",
            {"error": "ImageNotFoundError", "cause": '{"errorMessage": "it is gone", "errorType": "x"}'},
            "ImageNotFoundError",
            "it is gone",
        ),
        ("FAILED", {"error": "States.DataLimitExceeded", "cause": "too much"}, "States.DataLimitExceeded", "too much"),
        ("TIMED_OUT", {}, "TIMED_OUT", ""),
        ("ABORTED", {"error": "whatever", "cause": '{"errorMessage": 5}'}, "ABORTED", "5"),
        ("SUCCEEDED", {"output": None}, "SUCCEEDED", ""),  # EventBridge omits an output that is too large
        ("FAILED", {"error": "THRESHOLD_CONFIDENCE_NOT_MET", "cause": "[]"}, "THRESHOLD_CONFIDENCE_NOT_MET", "[]"),
    ],
)  # fmt: skip
def test_any_other_end_of_an_execution_is_recorded_as_an_error_by_name(
    event, context, capsys, status, detail, error, cause
):
    line = record_outcome.lambda_handler(ended(event, status, **detail), context)
    recorded = {"outcome": "error", **REQUESTED, "execution_arn": ARN, "error": error, "cause": cause}
    assert line == recorded
    assert metrics_in(capsys.readouterr().out) == {
        ("Images",): [1],
        ("Failed",): [1],
        ("Errors", ("error", error)): [1],
    }


@pytest.mark.parametrize(
    "text", ["no JSON", "[]", '{"s3_bucket": 1}', None, '{"detail": {"object": {}}}', "[" * 100_000]
)
def test_an_execution_with_nonsensical_input_is_recorded_anyway(event, context, text):
    line = record_outcome.lambda_handler(ended(event, "FAILED", input=text, error="InvalidInputError"), context)
    recorded = {"outcome": "error", "execution_arn": ARN, "error": "InvalidInputError", "cause": ""}
    assert line == recorded


def test_half_of_a_surrogate_pair_in_an_input_does_not_lose_the_line(event, context, log):
    written = log(record_outcome)
    text = '{"s3_bucket": "images", "s3_key": "a\\ud800b"}'
    record_outcome.lambda_handler(
        ended(event, "FAILED", input=text, error="InvalidInputError", cause="\udfff"), context
    )
    line = json.loads(written.getvalue().encode())
    assert (line["s3_key"], line["cause"]) == (r"a\ud800b", r"\udfff")


def test_an_upload_is_recorded_by_its_object(event, context):
    upload = json.dumps(event("start_execution"))
    line = record_outcome.lambda_handler(ended(event, "TIMED_OUT", input=upload), context)
    assert (line["s3_bucket"], line["s3_key"]) == ("images", "uploads/seven.png")


@pytest.mark.parametrize("returned", [20, 5], ids=["all", "truncated"])
def test_a_model_with_many_labels_has_no_metric_per_label(event, context, capsys, returned):
    result = result_in(event) | {"predictions": [{"label": str(n), "probability": 0.05} for n in range(returned)]}
    line = record_outcome.lambda_handler(ended(event, "SUCCEEDED", output=json.dumps(result)), context)
    assert len(line["predictions"]) == MAX_PREDICTIONS
    assert "LabelConfidence" not in {name for name, *_ in metrics_in(capsys.readouterr().out)}


@pytest.mark.parametrize("label", ["  ", "größe", "a\tb", "line\nbreak", "nul\0", ":colon"])
def test_a_label_that_no_dimension_can_have_is_counted_without_a_metric_of_its_own(event, context, capsys, label):
    """https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/API_Dimension.html"""
    result = result_in(event) | {"label": label, "predictions": [{"label": label, "probability": 1.0}]}
    record_outcome.lambda_handler(ended(event, "SUCCEEDED", output=json.dumps(result)), context)
    counted = metrics_in(capsys.readouterr().out)
    assert counted["Accepted",] == [1]
    assert not [name for name, *_ in counted if name == "LabelConfidence"]


def test_a_failure_is_recorded_with_the_version_of_its_object(event, context):
    request = json.dumps(REQUESTED | {"s3_version_id": "v1", "threshold": 0.5})
    line = record_outcome.lambda_handler(ended(event, "TIMED_OUT", input=request), context)
    assert (line["s3_version_id"], line["s3_key"]) == ("v1", REQUESTED["s3_key"])


RESTARTED = {"executionArn": f"{ARN}-redrive-1"}


@pytest.mark.parametrize("redriven", [{"redriveCount": 1}, RESTARTED], ids=["by AWS", "by make redrive"])
def test_a_redriven_execution_counts_as_its_last_outcome(event, context, capsys, redriven):
    again = event("record_outcome")
    again["detail"] |= redriven
    line = record_outcome.lambda_handler(again, context)
    assert (line["outcome"], line["redrives"]) == ("accepted", 1)
    counted = metrics_in(capsys.readouterr().out)
    assert (counted[("Accepted",)], counted[("Failed",)]) == ([1], [-1])
    assert ("Images",) not in counted


def test_a_redriven_execution_that_fails_again_is_counted_as_failed_once(event, context, capsys):
    failed = ended(event, "FAILED", error="EndpointUnavailableError", **RESTARTED)
    record_outcome.lambda_handler(failed, context)
    assert metrics_in(capsys.readouterr().out) == {("Errors", ("error", "EndpointUnavailableError")): [1]}
