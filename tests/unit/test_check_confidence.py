import pytest

import check_confidence
from contract import InvalidInputError
from predictions import EndpointResponseError
from review_item import item_for


def with_confidence(event, confidence, **more):
    return event("check_confidence") | {"predictions": [{"label": "7", "probability": confidence}]} | more


def test_the_decision_is_added_to_the_input(event, context):
    request = event("check_confidence")
    output = check_confidence.lambda_handler(request, context)
    del request["audit_rate"], output["review_item"]
    assert output == request | {"label": "7", "confidence": 0.97, "accepted": True}


@pytest.mark.parametrize(
    ("confidence", "threshold", "accepted"),
    [
        (0.75, 0.75, True),
        (0.7499999, 0.75, False),
        (0.6, 0.6, True),
        (0.97, 0.99, False),
        (1, 1, True),
        (0, 0.01, False),
    ],
)
def test_a_confidence_that_reaches_the_threshold_is_accepted(event, context, confidence, threshold, accepted):
    request = with_confidence(event, confidence, threshold=threshold)
    output = check_confidence.lambda_handler(request, context)
    assert (output["accepted"], output["threshold"]) == (accepted, threshold)


@pytest.mark.parametrize("confidence", [float("nan"), float("inf"), -0.1, 1.1, "0.9", None, True])
def test_an_invalid_confidence_is_an_error_of_the_endpoint(event, context, confidence):
    with pytest.raises(EndpointResponseError):
        check_confidence.lambda_handler(with_confidence(event, confidence), context)


@pytest.mark.parametrize("field", ["predictions", "threshold"])
def test_a_missing_field_is_invalid_input(event, context, field):
    request = event("check_confidence")
    del request[field]
    with pytest.raises(InvalidInputError, match=field):
        check_confidence.lambda_handler(request, context)


def test_the_result_names_the_trace_of_the_execution(monkeypatch):
    monkeypatch.setenv("_X_AMZN_TRACE_ID", "Root=1-6b06434b-00000000000000000000000a;Parent=53995c3f42cd8ad8;Sampled=1")
    assert check_confidence.trace_id() == {"trace_id": "1-6b06434b-00000000000000000000000a"}
    monkeypatch.delenv("_X_AMZN_TRACE_ID")
    assert check_confidence.trace_id() == {}


def test_the_version_is_required(event, context):
    """An image without one could be put up for review again and again."""
    request = event("check_confidence")
    del request["s3_version_id"]
    with pytest.raises(InvalidInputError):
        check_confidence.lambda_handler(request, context)
    assert check_confidence.lambda_handler(request | {"s3_etag": "abc"}, context)["s3_etag"] == "abc"


@pytest.mark.parametrize(("threshold", "audit_rate"), [(0.99, 0), (0.75, 1)])
def test_an_unsure_or_audited_image_comes_with_its_item_for_the_review_table(event, context, threshold, audit_rate):
    request = event("check_confidence") | {"threshold": threshold, "audit_rate": audit_rate}
    output = check_confidence.lambda_handler(request, context)
    item = output.pop("review_item")
    assert item.pop("created_at")
    expected = item_for(output, audit_rate)
    del expected["created_at"]
    assert item == expected


def test_an_execution_that_began_before_the_review_table_existed_goes_on(event, context):
    """A running execution keeps its definition, but invokes the functions' new version."""
    request = event("check_confidence")
    del request["audit_rate"], request["s3_version_id"]
    output = check_confidence.lambda_handler(request, context)
    assert output == request | {"label": "7", "confidence": 0.97, "accepted": True}
