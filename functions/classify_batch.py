"""ClassifyBatch: references to images -> one JSON Lines object with a line for each, and counts.

in   BatchInput: {s3_bucket, execution_arn, threshold, url_encoded, endpoint, requests, results, review_table,
     audit_rate},
     Items: references (batch_source.py), batch: the child execution's name
out  {batch, results, items, images, skipped, accepted, review, error, errors, confidence, ...}

A line is CheckConfidence's output with `outcome` (accepted or review), or outcome error with the error's name and its
message (prediction_log.py). Trouble with an image is a line. Trouble with a service is an exception: the state machine
retries the whole batch, which then overwrites its own object, so nothing counts twice.

Single images' own code reads, checks, shrinks and decides. At most READERS source images and one decoded image are in
memory, and the requests of at most MAX_REQUEST_BYTES that wait.
"""

import json
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError
from botocore.session import get_session

import prediction_log
from batch_source import archive_of, names_an_image, request_for
from check_confidence import decide
from classify_image import decode, invoke_endpoint
from contract import CLASSIFY_BATCH, InvalidInputError, validator
from pixels import UnsupportedImageError
from predictions import EndpointResponseError, parse_predictions, split_labels
from retrieve_image import ImageAccessDeniedError, ImageNotFoundError, fetch, fit, s3, with_version
from retrieve_image import validated as validated_image
from review_item import Item, item_for

READERS = 16  # objects read side by side
MAX_REQUEST_BYTES = 4_000_000  # a serverless endpoint accepts 4 MiB, a realtime one 6 MiB
MAX_REQUEST_IMAGES = 64  # so that a slow model too responds within SageMaker's 60 s
JSON_LINES = "application/jsonlines"
WRITERS = 8  # items of the review table written side by side
IMAGE_ERRORS = (ImageAccessDeniedError, ImageNotFoundError, InvalidInputError, UnsupportedImageError)

Line = dict[str, Any]

logger = Logger()
dynamodb = get_session().create_client(
    "dynamodb", config=Config(connect_timeout=3, read_timeout=10, retries={"mode": "standard"})
)
validated = validator(CLASSIFY_BATCH)


class ResultsUnavailableError(Exception):
    """The results bucket did not store the batch's lines: worth a retry."""


class ReviewTableUnavailableError(Exception):
    """The review table throttled, failed or did not respond: worth a retry."""


def side_by_side(function: Callable[[Any], Any], arguments: Iterable[Any], workers: int) -> Iterator[Any]:
    """Results in the order of the arguments, at most `workers` of them ahead of what the caller has consumed."""
    with ThreadPoolExecutor(workers) as pool:
        ahead: deque[Future[Any]] = deque()
        for argument in arguments:
            ahead.append(pool.submit(function, argument))
            if len(ahead) > workers:
                yield ahead.popleft().result()
        while ahead:
            yield ahead.popleft().result()


def failed(request: dict[str, Any], error: Exception) -> Line:
    return prediction_log.failed(request, type(error).__name__, str(error))


def read(item: Any, batch: dict[str, Any]) -> tuple[dict[str, Any], bytes | Exception]:
    """The request for an item's image with the object's version, and its bytes or the error of this image."""
    request = request_for(item, batch)
    try:
        validated_image(request)
        if archive := archive_of(item):
            raise ImageAccessDeniedError(f"{uri(request)} is archived in {archive}: restore it first")
        source, version = fetch(request["s3_bucket"], request["s3_key"], request.get("s3_version_id"))
        return with_version(request, version), source
    except IMAGE_ERRORS as error:
        return request, error


def uri(request: dict[str, Any]) -> str:
    return f"s3://{request['s3_bucket']}/{request['s3_key']}"


def check(request: dict[str, Any], source: bytes | Exception) -> Line:
    """The request with its image, as RetrieveImage returns it, or the line of an error."""
    if isinstance(source, Exception):
        return failed(request, source)
    try:
        return {**request, "image": fit(source, uri(request))}
    except IMAGE_ERRORS as error:
        return failed(request, error)


def requests(entries: Iterable[Line], max_images: int) -> Iterator[list[Line]]:
    """The entries in groups whose images fit into one request to the endpoint."""
    group: list[Line] = []
    images = size = 0
    for entry in entries:
        if "image" in entry:
            line = len(entry["image"]["data"]) + len('{"image": ""}\n')
            if images == max_images or size + line > MAX_REQUEST_BYTES:
                yield group
                group, images, size = [], 0, 0
            images, size = images + 1, size + line
        group.append(entry)
    if group:
        yield group


def invoke_with_lines(
    images: list[dict[str, Any]], endpoint: dict[str, str]
) -> tuple[list[bytes | Exception], str, int]:
    """The endpoint's response to each image, its variant, and the bytes sent and received.

    Raises EndpointResponseError if the response is of no use to any image, which is the endpoint's fault.
    """
    body = "".join(f'{{"image": "{image["data"]}"}}\n' for image in images).encode()
    response, variant = invoke_endpoint(endpoint["name"], body, JSON_LINES, JSON_LINES)
    lines = response.splitlines()
    if len(lines) != len(images):
        raise EndpointResponseError(
            f"Endpoint {endpoint['name']} returned {len(lines)} lines for {len(images)} images in {JSON_LINES}: "
            "set the stack's parameter BatchRequests to single if it classifies one image per request"
        )
    return [*lines], variant, len(body) + len(response)


def invoke_with_image(image: dict[str, Any], endpoint: dict[str, str]) -> tuple[list[bytes | Exception], str, int]:
    """The same for an endpoint of one image per request: a response that rejects the image is the image's error."""
    body = decode(image["data"])
    try:
        response, variant = invoke_endpoint(endpoint["name"], body, image["content_type"], endpoint["accept"])
    except EndpointResponseError as error:
        return [error], "", len(body)
    return [response], variant, len(body) + len(response)


def decide_line(entry: Line, response: bytes | Exception, variant: str, endpoint: dict[str, str]) -> Line:
    """CheckConfidence's output for an image, and its outcome; or the line of an error."""
    try:
        if isinstance(response, Exception):
            raise response
        if response.startswith(b'{"error"'):  # endpoint/inference.py's line for an image that it rejects
            raise EndpointResponseError(f"Endpoint {endpoint['name']} rejected {uri(entry)}: {response.decode()[:500]}")
        predictions = parse_predictions(response, split_labels(endpoint["labels"]))
    except EndpointResponseError as error:
        return failed(entry, error)
    result = {
        **entry,
        "image": {name: value for name, value in entry["image"].items() if name != "data"},
        "predictions": predictions,
        "endpoint": {"name": endpoint["name"], "variant": variant},
        **decide(predictions, entry["threshold"]),
    }
    return {"outcome": "accepted" if result["accepted"] else "review", **result}


def classify(entries: list[Line], batch: dict[str, Any]) -> tuple[list[Line], dict[str, float]]:
    """The lines for a group of `requests`, and what they took of the endpoint."""
    endpoint = batch["endpoint"]
    images = [entry["image"] for entry in entries if "image" in entry]
    if not images:
        return entries, {}
    started = time.perf_counter()
    responses, variant, size = (
        invoke_with_image(images[0], endpoint) if batch["requests"] == "single" else invoke_with_lines(images, endpoint)
    )
    usage = {
        "endpoint_requests": 1,
        "endpoint_bytes": size,
        "endpoint_ms": (time.perf_counter() - started) * 1000,
    }
    waiting = iter(responses)
    lines = [decide_line(entry, next(waiting), variant, endpoint) if "image" in entry else entry for entry in entries]
    return lines, usage


def count(lines: list[Line]) -> dict[str, Any]:
    outcomes = Counter(line["outcome"] for line in lines)
    return {
        "images": len(lines),
        **{outcome: outcomes[outcome] for outcome in ("accepted", "review", "error")},
        "errors": dict(Counter(line["error"] for line in lines if "error" in line)),
        "confidence": sum(line["confidence"] for line in lines if "confidence" in line),
    }


def write(bucket: str, key: str, lines: list[Line]) -> None:
    """Write the lines as one object, in place of an earlier attempt's."""
    body = "".join(f"{json.dumps(line)}\n" for line in lines).encode()
    try:
        s3.put_object(Bucket=bucket, Key=key, Body=body, ContentType=JSON_LINES)
    except (ClientError, BotoCoreError) as error:
        raise ResultsUnavailableError(f"s3://{bucket}/{key}: {error}") from None


def put_review(table: str, item: Item) -> None:
    """Put the item, unless this version of the image has one. A batch that runs again replaces no claim or decision."""
    try:
        dynamodb.put_item(TableName=table, Item=item, ConditionExpression="attribute_not_exists(image)")
    except dynamodb.exceptions.ConditionalCheckFailedException:
        pass
    except (ClientError, BotoCoreError) as error:
        raise ReviewTableUnavailableError(f"{table}: {error}") from None


def send_to_review(lines: list[Line], batch: dict[str, Any]) -> None:
    """Put the images into the review table that SendToReview and SendToAudit would put there."""
    items = [item_for(line, batch["audit_rate"]) for line in lines if "accepted" in line]
    for _ in side_by_side(partial(put_review, batch["review_table"]), filter(None, items), WRITERS):
        pass


@logger.inject_lambda_context(correlation_id_path="BatchInput.execution_arn")
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    started = time.perf_counter()
    request = validated(event)
    batch = request["BatchInput"]
    items = [item for item in request["Items"] if names_an_image(item)]
    entries = (check(*each) for each in side_by_side(lambda item: read(item, batch), items, READERS))
    groups = requests(entries, 1 if batch["requests"] == "single" else MAX_REQUEST_IMAGES)
    time_stamp = {"time": datetime.now(UTC).isoformat(timespec="milliseconds")}
    lines: list[Line] = []
    usage: Counter[str] = Counter()
    for classified, used in side_by_side(lambda group: classify(group, batch), groups, 1):
        lines += [line | time_stamp for line in classified]
        usage.update(used)
    key = f"{batch['results']['prefix']}{request['batch']}.jsonl"
    write(batch["results"]["bucket"], key, lines)
    if batch.get("review_table"):
        send_to_review(lines, batch)
    seconds = time.perf_counter() - started
    counts = {
        "items": len(request["Items"]),
        "skipped": len(request["Items"]) - len(items),
        **count(lines),
        **{name: round(value, 1) for name, value in usage.items()},
        "lambda_gb_seconds": round(seconds * int(context.memory_limit_in_mb) / 1024, 3),
    }
    logger.info("batch classified", batch=request["batch"], results=key, **counts)
    return {"batch": request["batch"], "results": key, **counts}
