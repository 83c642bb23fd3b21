"""Every event of events/ with `sam local` in Docker: the functions' results and logs."""

import base64
import hashlib
import json

import pytest

from local.command import ROOT

EVENTS = ROOT / "events"
DECISION = {"label": "7", "confidence": 0.97, "threshold": 0.75, "accepted": True}


def event(name):
    return json.loads((EVENTS / f"{name}.json").read_text())


def retrieved():
    """The result of RetrieveImage for an image in a bucket without versions; its state adds the endpoint."""
    result = event("classify_image")
    etag = hashlib.md5(base64.b64decode(result["image"]["data"])).hexdigest()
    return {name: value for name, value in result.items() if name not in ("endpoint", "s3_version_id")} | {
        "s3_etag": etag
    }


def messages(invocation):
    return [line["message"] for line in invocation.lines if "message" in line]


@pytest.fixture
def image_data():
    return event("classify_image")["image"]["data"]


def test_retrieve_image_reads_the_object_and_returns_the_next_event(sam, image_data):
    invocation = sam.invoke("RetrieveImageFunction", EVENTS / "retrieve_image.json")
    assert invocation.payload == retrieved()
    assert "image retrieved" in messages(invocation)
    assert image_data not in invocation.log


def test_classify_image_invokes_the_endpoint(functions, image_data):
    invocation = functions.invoke("ClassifyImageFunction", event("classify_image"))
    assert invocation.payload["predictions"][0]["label"] == "7"
    assert invocation.payload["endpoint"] == {"name": "image-classification", "variant": "AllTraffic"}
    assert invocation.payload["image"] == event("check_confidence")["image"]
    assert "image classified" in messages(invocation)
    assert image_data not in invocation.log


def test_check_confidence_returns_its_decision(functions):
    invocation = functions.invoke("CheckConfidenceFunction", event("check_confidence"))
    expected = event("check_confidence") | DECISION | {"review_item": {}}
    del expected["audit_rate"]
    assert invocation.payload == expected
    assert json.dumps(invocation.payload) in (ROOT / "docs/local-stack.md").read_text()
    assert "confidence checked" in messages(invocation)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (event("retrieve_image") | {"s3_key": "nowhere.png"}, "ImageNotFoundError"),
        (event("retrieve_image") | {"threshold": 2}, "InvalidInputError"),
        (event("start_execution"), "InvalidInputError"),  # the state machine unpacks it, not the function
        ({}, "InvalidInputError"),
    ],
)
def test_a_failed_function_returns_the_name_of_its_error(functions, request_, error):
    assert functions.invoke("RetrieveImageFunction", request_).payload["errorType"] == error


def test_retrieve_image_accepts_the_input_of_an_execution(functions):
    assert functions.invoke("RetrieveImageFunction", event("classify_image_execution")).payload == retrieved()
