"""Every event of events/ through `sam local`, in Docker: what a function returns, and what it writes."""

import json

import pytest

from local.command import ROOT

EVENTS = ROOT / "events"
DECISION = {"label": "7", "confidence": 0.97, "threshold": 0.75, "accepted": True}


def event(name):
    return json.loads((EVENTS / f"{name}.json").read_text())


def retrieved():
    """What RetrieveImage returns, to which its state adds the endpoint to ask."""
    return {name: value for name, value in event("classify_image").items() if name != "endpoint"}


def messages(invocation):
    return [line["message"] for line in invocation.lines if "message" in line]


@pytest.fixture
def image_data():
    return event("classify_image")["image"]["data"]


def test_retrieve_image_reads_the_object_and_makes_the_next_event(sam, image_data):
    invocation = sam.invoke("RetrieveImageFunction", EVENTS / "retrieve_image.json")
    assert invocation.payload == retrieved()
    assert "image retrieved" in messages(invocation)
    assert image_data not in invocation.log


def test_classify_image_asks_the_endpoint(functions, image_data):
    invocation = functions.invoke("ClassifyImageFunction", event("classify_image"))
    assert invocation.payload["predictions"][0]["label"] == "7"
    assert invocation.payload["endpoint"] == {"name": "image-classification", "variant": "AllTraffic"}
    assert invocation.payload["image"] == event("check_confidence")["image"]
    assert "image classified" in messages(invocation)
    assert image_data not in invocation.log


def test_check_confidence_decides(functions):
    invocation = functions.invoke("CheckConfidenceFunction", event("check_confidence"))
    assert invocation.payload == event("check_confidence") | DECISION
    assert "confidence checked" in messages(invocation)


@pytest.mark.parametrize(
    ("request_", "error"),
    [
        (event("retrieve_image") | {"s3_key": "nowhere.png"}, "ImageNotFoundError"),
        (event("retrieve_image") | {"threshold": 2}, "InvalidInputError"),
        (event("s3_object_created"), "InvalidInputError"),  # the state machine takes it apart, not the function
        ({}, "InvalidInputError"),
    ],
)
def test_an_error_of_a_function_has_its_name(functions, request_, error):
    assert functions.invoke("RetrieveImageFunction", request_).payload["errorType"] == error


def test_the_input_of_an_execution_is_the_first_functions_too(functions):
    assert functions.invoke("RetrieveImageFunction", event("classify_image_execution")).payload == retrieved()
