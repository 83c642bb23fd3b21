"""events/ is the contract, link by link: each file is the input of its function, and its output is the next file."""

import base64
import io
import json

import pytest
from botocore.response import StreamingBody
from botocore.stub import Stubber
from jsonata import Jsonata

import check_confidence
import classify_image
import retrieve_image
from documents import ROOT, STATES


def payload_of_retrieve_image(execution_input):
    """What the first state makes of an execution's input."""
    expression = STATES["RetrieveImage"]["Arguments"]["Payload"].removeprefix("{%").removesuffix("%}")
    jsonata = Jsonata(expression)
    jsonata.assign("states", {"input": execution_input})
    return jsonata.evaluate(None)


def body(data):
    return StreamingBody(io.BytesIO(data), len(data))


def test_retrieve_image_makes_the_event_of_classify_image(event, context):
    expected = event("classify_image")
    data = base64.b64decode(expected["image"]["data"])
    with Stubber(retrieve_image.s3) as s3:
        s3.add_response("get_object", {"Body": body(data), "ContentLength": len(data)})
        assert retrieve_image.lambda_handler(event("retrieve_image"), context) == expected


def test_classify_image_makes_the_event_of_check_confidence(event, context):
    expected = event("check_confidence")
    answer = json.dumps({"predictions": expected["predictions"]}).encode()
    with Stubber(classify_image.runtime) as runtime:
        runtime.add_response("invoke_endpoint", {"Body": body(answer), "InvokedProductionVariant": "AllTraffic"})
        assert classify_image.lambda_handler(event("classify_image"), context) == expected


def test_check_confidence_takes_its_event(event, context):
    assert check_confidence.lambda_handler(event("check_confidence"), context)["accepted"]


@pytest.mark.parametrize("name", ["classify_image_execution", "s3_object_created"])
def test_an_execution_begins_with_the_event_of_retrieve_image(event, name):
    assert payload_of_retrieve_image(event(name)) == event("retrieve_image")


def test_the_version_in_an_upload_event_goes_on(event):
    upload = event("s3_object_created")
    upload["detail"]["object"]["version-id"] = "v1"
    assert payload_of_retrieve_image(upload)["s3_version_id"] == "v1"


@pytest.mark.parametrize("wrong", [{}, [], "text", 7, {"detail": "text"}, {"detail": {"object": {}}}])
def test_what_is_neither_reaches_the_function_as_it_is(wrong):
    assert payload_of_retrieve_image(wrong) == wrong


def test_every_event_file_is_tested_here():
    functions = {"retrieve_image", "classify_image", "check_confidence"}
    names = {path.stem for path in (ROOT / "events").glob("*.json")}
    assert names == functions | {"classify_image_execution", "s3_object_created"}
