import json

import pytest
from botocore.stub import Stubber

import record_review
from record_review import DecisionNotPublishedError


@pytest.fixture
def bus():
    """EventBridge; the entries that it received."""
    with Stubber(record_review.events) as stubber:
        yield stubber


def accept(bus, sent):
    """Let the bus accept an event, which is added to `sent`."""
    bus.add_response("put_events", {"FailedEntryCount": 0, "Entries": [{"EventId": "1"}]})
    bus.client.meta.events.register(
        "provide-client-params.eventbridge.PutEvents", lambda params, **_: sent.append(params)
    )


def undone(event):
    request = event("record_review")
    change = request["Records"][0]["dynamodb"]
    change["NewImage"] = change["OldImage"] | {"revision": {"N": "2"}}
    return request


def test_a_decision_is_published_and_logged(bus, event, context, log):
    written = log(record_review)
    expected = {"Source": "image-classification", "DetailType": "Image Reviewed"}
    sent = []
    accept(bus, sent)
    record_review.lambda_handler(event("record_review"), context)
    (entry,) = sent[0]["Entries"]
    detail = json.loads(entry.pop("Detail"))
    assert entry == expected
    assert detail["reviewed_label"] == "1"
    assert {name: detail[name] for name in ("label", "confidence", "decision", "reviewer", "revision")} == {
        "label": "7",
        "confidence": 0.52,
        "decision": "label",
        "reviewer": "ada",
        "revision": 1,
    }
    line = json.loads(written.getvalue())
    assert line["message"] == "review"
    assert {name: line[name] for name in detail} == detail


def test_an_undone_decision_is_published_as_one(bus, event, context):
    sent = []
    accept(bus, sent)
    record_review.lambda_handler(undone(event), context)
    (entry,) = sent[0]["Entries"]
    assert entry["DetailType"] == "Image Review Undone"
    detail = json.loads(entry["Detail"])
    assert detail["revision"] == 2
    assert "decision" not in detail


@pytest.mark.parametrize("failure", ["refused", "unavailable"])
def test_a_decision_that_is_not_published_fails_for_a_retry_and_is_not_logged(bus, event, context, log, failure):
    written = log(record_review)
    if failure == "refused":
        entries = [{"ErrorCode": "InternalFailure", "ErrorMessage": "try again"}]
        bus.add_response("put_events", {"FailedEntryCount": 1, "Entries": entries})
    else:
        bus.add_client_error("put_events", "ServiceUnavailable", "try again", http_status_code=503)
    with pytest.raises(DecisionNotPublishedError, match="try again"):
        record_review.lambda_handler(event("record_review"), context)
    assert '"message":"review"' not in written.getvalue()
