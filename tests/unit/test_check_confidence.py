import pytest

import check_confidence
from contract import InvalidInputError
from predictions import EndpointResponseError


def with_confidence(event, confidence, **more):
    return event("check_confidence") | {"predictions": [{"label": "7", "probability": confidence}]} | more


def test_the_decision_is_added_to_the_input(event, context):
    request = event("check_confidence")
    assert check_confidence.lambda_handler(request, context) == request | {
        "label": "7",
        "confidence": 0.97,
        "accepted": True,
    }


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
