import base64
import io
import json

import pytest
from botocore.exceptions import EndpointConnectionError, ReadTimeoutError
from botocore.response import StreamingBody
from botocore.stub import Stubber

import classify_image
from classify_image import (
    EndpointAccessDeniedError,
    EndpointNotConfiguredError,
    EndpointThrottledError,
    EndpointUnavailableError,
)
from contract import InvalidInputError
from predictions import EndpointResponseError
from review_item import inference_id


@pytest.fixture
def runtime():
    with Stubber(classify_image.runtime) as stubber:
        yield stubber


def with_endpoint(event, **changes):
    """The event, with changes to its endpoint."""
    request = event("classify_image")
    return request | {"endpoint": request["endpoint"] | changes}


def respond(runtime, body, **expected):
    body = body if isinstance(body, bytes) else json.dumps(body).encode()
    response = {"Body": StreamingBody(io.BytesIO(body), len(body)), "InvokedProductionVariant": "AllTraffic"}
    runtime.add_response("invoke_endpoint", response, expected or None)


def test_the_endpoint_receives_the_image_and_the_output_drops_its_data(runtime, event, context):
    request = event("classify_image")
    respond(
        runtime,
        {"predictions": [{"label": "7", "probability": 0.97}]},
        EndpointName="image-classification",
        Body=base64.b64decode(request["image"]["data"]),
        ContentType="image/png",
        Accept="application/json",
        InferenceId=inference_id(request),
    )
    output = classify_image.lambda_handler(request, context)
    assert output == {
        "s3_bucket": "images",
        "s3_key": "uploads/seven.png",
        "s3_version_id": request["s3_version_id"],
        "image": {key: value for key, value in request["image"].items() if key != "data"},
        "predictions": [{"label": "7", "probability": 0.97}],
        "endpoint": {"name": "image-classification", "variant": "AllTraffic"},
    }


@pytest.mark.parametrize(
    ("code", "members", "error"),
    [
        ("ThrottlingException", {}, EndpointThrottledError),
        ("ModelNotReadyException", {}, EndpointUnavailableError),
        ("ServiceUnavailable", {}, EndpointUnavailableError),
        ("InternalFailure", {}, EndpointUnavailableError),
        ("InternalDependencyException", {}, EndpointUnavailableError),
        ("AccessDeniedException", {}, EndpointAccessDeniedError),
        ("ModelError", {"OriginalStatusCode": 500, "OriginalMessage": "boom"}, EndpointUnavailableError),
        ("ModelError", {"OriginalStatusCode": 0, "OriginalMessage": "boom"}, EndpointUnavailableError),
        ("ModelError", {"OriginalStatusCode": 503, "OriginalMessage": "boom"}, EndpointUnavailableError),
        ("ModelError", {"OriginalStatusCode": 429, "OriginalMessage": "boom"}, EndpointThrottledError),
        ("ModelError", {"OriginalStatusCode": 400, "OriginalMessage": "boom"}, EndpointResponseError),
    ],
)
def test_errors_of_the_endpoint_are_raised_by_name(runtime, event, context, code, members, error):
    runtime.add_client_error("invoke_endpoint", code, "boom", modeled_fields=None, response_meta=None)
    runtime._queue[-1]["response"][1].update(members)
    with pytest.raises(error, match=r"Endpoint image-classification.*boom") as caught:
        classify_image.lambda_handler(event("classify_image"), context)
    assert type(caught.value) is error


def test_a_missing_endpoint_fails_with_the_deployment_to_choose(runtime, event, context):
    message = "Endpoint image-classification of account 000000000000 not found."
    runtime.add_client_error("invoke_endpoint", "ValidationError", message)
    with pytest.raises(EndpointNotConfiguredError, match=r"not found\. Deploy the stack with EndpointType"):
        classify_image.lambda_handler(event("classify_image"), context)


def test_a_stack_without_an_endpoint_says_so(event, context):
    with pytest.raises(EndpointNotConfiguredError, match="This stack has no endpoint"):
        classify_image.lambda_handler(with_endpoint(event, name=""), context)


@pytest.mark.parametrize(
    "failure", [EndpointConnectionError(endpoint_url="http://x"), ReadTimeoutError(endpoint_url="http://x")]
)
def test_an_endpoint_that_does_not_respond_is_unavailable(event, context, failure):
    def fail(**_):
        raise failure

    classify_image.runtime.meta.events.register_first("before-send.sagemaker-runtime", fail)
    try:
        with pytest.raises(EndpointUnavailableError, match="http://x"):
            classify_image.lambda_handler(event("classify_image"), context)
    finally:
        classify_image.runtime.meta.events.unregister("before-send.sagemaker-runtime", fail)


def test_bare_probabilities_get_the_labels_of_the_stack(runtime, event, context):
    respond(runtime, [0.2, 0.8])
    output = classify_image.lambda_handler(with_endpoint(event, labels="cat, dog"), context)
    assert output["predictions"][0]["label"] == "dog"


def test_wrapped_base64_is_read(runtime, event, context):
    request = event("classify_image")
    data = base64.b64decode(request["image"]["data"])
    request["image"]["data"] = base64.encodebytes(data).decode().replace("\n", "\r\n")
    assert request["image"]["data"].count("\r\n") > 1
    expected = {"EndpointName": "image-classification", "ContentType": "image/png", "Accept": "application/json"}
    expected["InferenceId"] = inference_id(request)
    respond(runtime, {"predictions": [{"label": "7", "probability": 0.97}]}, Body=data, **expected)
    assert classify_image.lambda_handler(request, context)["predictions"][0]["label"] == "7"


@pytest.mark.parametrize("data", ["not base64!", "abc", "å"])
def test_data_that_is_not_base64_is_invalid_input_and_is_not_quoted(event, context, data):
    request = event("classify_image")
    request["image"]["data"] = data
    with pytest.raises(InvalidInputError) as caught:
        classify_image.lambda_handler(request, context)
    assert data not in str(caught.value)


def test_no_image_bytes_in_the_log_or_in_the_error_for_invalid_input(runtime, event, context, log):
    request = with_endpoint(event, labels="cat, dog")
    respond(runtime, [0.2, 0.8])
    written = log(classify_image)
    classify_image.lambda_handler(request, context)
    with pytest.raises(InvalidInputError) as caught:
        classify_image.lambda_handler({**request, "s3_key": 7}, context)
    assert "image classified" in written.getvalue()
    assert request["image"]["data"][:40] not in written.getvalue() + str(caught.value)


@pytest.mark.parametrize(
    ("code", "status", "message", "error"),
    [
        ("ValidationError", 400, "Inference Component Name header is required", EndpointNotConfiguredError),
        ("ValidationError", 400, "Value at 'body' failed to satisfy constraint", EndpointResponseError),
        ("KMSAccessDeniedException", 400, "The key is disabled", EndpointAccessDeniedError),
        ("Unknown", 403, "", EndpointAccessDeniedError),
        ("Unknown", 429, "", EndpointThrottledError),
        ("Unknown", 503, "", EndpointUnavailableError),
    ],
)
def test_every_other_error_has_a_name_and_names_the_endpoint(runtime, event, context, code, status, message, error):
    runtime.add_client_error("invoke_endpoint", code, message, http_status_code=status)
    with pytest.raises(error, match="Endpoint image-classification: ") as caught:
        classify_image.lambda_handler(event("classify_image"), context)
    assert type(caught.value) is error
