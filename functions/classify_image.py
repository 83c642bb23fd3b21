"""ClassifyImage: an image -> the SageMaker endpoint's predictions. The image data leaves the payload here.

in   s3_bucket, s3_key, image with data, endpoint: {name, accept, labels}; optional s3_version_id, threshold
out  - image.data, + predictions: [{label, probability}] best first, endpoint: {name, variant}
"""

import base64
import os
import time
from typing import Any

from aws_lambda_powertools import Logger, Metrics, Tracer
from aws_lambda_powertools.metrics import MetricUnit
from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.config import Config
from botocore.exceptions import ClientError, HTTPClientError, IncompleteReadError
from botocore.exceptions import ConnectionError as EndpointConnectionError
from botocore.session import get_session

from contract import CLASSIFY_IMAGE, InvalidInputError, validator
from predictions import EndpointResponseError, parse_predictions, split_labels
from review_item import inference_id

HOW_TO_DEPLOY = "Deploy the stack with EndpointType serverless, realtime or existing."

logger = Logger()
tracer = Tracer()
metrics = Metrics()
# One attempt: the state machine retries, visibly and at no Lambda cost. ClassifyBatch, whose retry reads the whole
# batch again, has more in its environment.
ATTEMPTS = int(os.environ.get("AWS_MAX_ATTEMPTS", "1"))
# SageMaker gives a container 60 s to respond.
runtime = get_session().create_client(
    "sagemaker-runtime",
    config=Config(connect_timeout=5, read_timeout=65, retries={"mode": "standard", "total_max_attempts": ATTEMPTS}),
)
validated = validator(CLASSIFY_IMAGE)


class EndpointNotConfiguredError(Exception):
    """The stack was deployed without an endpoint, or its endpoint was deleted."""


class EndpointAccessDeniedError(Exception):
    """The function's role cannot invoke the endpoint."""


class EndpointThrottledError(Exception):
    """The endpoint is at its maximum concurrency: worth a retry."""


class EndpointUnavailableError(Exception):
    """The endpoint did not respond, or failed internally: worth a retry."""


ENDPOINT_ERRORS = {
    **dict.fromkeys(("ThrottlingException", "TooManyRequestsException", "Throttling"), EndpointThrottledError),
    **dict.fromkeys(
        ("ModelNotReadyException", "ServiceUnavailable", "InternalFailure", "InternalDependencyException"),
        EndpointUnavailableError,
    ),
    **dict.fromkeys(
        ("AccessDeniedException", "AccessDenied", "ExpiredTokenException", "UnrecognizedClientException"),
        EndpointAccessDeniedError,
    ),
}


def endpoint_error(error: ClientError, endpoint: str) -> Exception:
    """SageMaker's error as one of those above: the state machine matches errors by class name."""
    code, message = error.response["Error"]["Code"], error.response["Error"].get("Message", "")
    if code in ENDPOINT_ERRORS:
        return ENDPOINT_ERRORS[code](f"Endpoint {endpoint}: {message} ({code})")
    if code == "ModelError":  # the container responded, but not with 200
        status = error.response.get("OriginalStatusCode", 500)  # 0: the container timed out or died
        rejection = EndpointThrottledError if status == 429 else EndpointResponseError
        error_class = rejection if 400 <= status < 500 else EndpointUnavailableError
        reason = error.response.get("OriginalMessage", message)[:500]
        return error_class(f"Endpoint {endpoint} returned {status}: {reason}")
    text = f"Endpoint {endpoint}: {message or code} ({code})"
    if "not found" in message.lower():
        return EndpointNotConfiguredError(f"{message} {HOW_TO_DEPLOY}")
    if "inference component" in message.lower():
        return EndpointNotConfiguredError(f"{text}. The workflow calls only endpoints whose variants have a model.")
    status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 400)
    if code.startswith("KMS") or status in (401, 403):
        return EndpointAccessDeniedError(text)
    if status == 429 or status >= 500:
        return (EndpointThrottledError if status == 429 else EndpointUnavailableError)(text)
    return EndpointResponseError(text)  # it rejected the request


@tracer.capture_method(capture_response=False)
def invoke_endpoint(endpoint: str, body: bytes, content_type: str, accept: str, **options: str) -> tuple[bytes, str]:
    """The body of the endpoint's response, and the name of the variant that sent it. options: of InvokeEndpoint."""
    try:
        response = runtime.invoke_endpoint(
            EndpointName=endpoint, Body=body, ContentType=content_type, Accept=accept, **options
        )
        return response["Body"].read(), response.get("InvokedProductionVariant", "")
    except ClientError as error:
        raise endpoint_error(error, endpoint) from None
    except (HTTPClientError, EndpointConnectionError, IncompleteReadError) as error:
        raise EndpointUnavailableError(f"Endpoint {endpoint}: {error}") from None


def decode(data: str) -> bytes:
    try:
        return base64.b64decode(data.replace("\r", "").replace("\n", ""), validate=True)  # it can be wrapped
    except ValueError as error:
        raise InvalidInputError(f"The input is not valid: image.data is not base64 ({error})") from None


@logger.inject_lambda_context(correlation_id_path="execution_arn")
@tracer.capture_lambda_handler(capture_response=False)
@metrics.log_metrics
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    request = validated(event)
    endpoint = request["endpoint"]
    if not endpoint["name"]:  # deployed with EndpointType none
        raise EndpointNotConfiguredError(f"This stack has no endpoint. {HOW_TO_DEPLOY}")
    image = dict(request["image"])
    started = time.perf_counter()
    data = decode(image.pop("data"))
    body, variant = invoke_endpoint(
        endpoint["name"], data, image["content_type"], endpoint["accept"], InferenceId=inference_id(request)
    )
    milliseconds = (time.perf_counter() - started) * 1000
    metrics.add_metric("EndpointLatency", MetricUnit.Milliseconds, milliseconds)
    predictions = parse_predictions(body, split_labels(endpoint["labels"]))
    logger.info("image classified", s3_key=request["s3_key"], endpoint_ms=round(milliseconds, 1), best=predictions[0])
    return {
        **request,
        "image": image,
        "predictions": predictions,
        "endpoint": {"name": endpoint["name"], "variant": variant},
    }
