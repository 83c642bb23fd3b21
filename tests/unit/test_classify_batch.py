import base64
import io
import json
import subprocess
import sys
import threading
import time

import botocore.session
import pytest
from botocore.exceptions import ReadTimeoutError
from botocore.response import StreamingBody
from botocore.stub import ANY, Stubber
from PIL import Image

import check_confidence
import classify_batch
import classify_image
import retrieve_image
from classify_batch import ResultsUnavailableError, ReviewTableUnavailableError, requests, side_by_side
from classify_image import EndpointThrottledError, EndpointUnavailableError
from documents import ROOT, transformed
from predictions import EndpointResponseError
from retrieve_image import ImageStoreUnavailableError

PREDICTIONS = [{"label": "7", "probability": 0.95}, {"label": "9", "probability": 0.05}]
DOUBTFUL = [{"label": "1", "probability": 0.6}, {"label": "7", "probability": 0.4}]
RESULTS = "results/execution=name/5d1f3c9e-8a43-4a39-9d7c-3a2f6d2b1c55.jsonl"


def body(data):
    return StreamingBody(io.BytesIO(data), len(data))


def png(width=3):
    buffer = io.BytesIO()
    Image.new("L", (width, 2)).save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture
def one_reader(monkeypatch):
    """Stubbed responses are in order, so the objects have to be read in order too."""
    monkeypatch.setattr(classify_batch, "READERS", 1)


@pytest.fixture
def aws(one_reader):
    with (
        Stubber(retrieve_image.s3) as s3,
        Stubber(classify_image.runtime) as runtime,
        Stubber(classify_batch.dynamodb) as dynamodb,
    ):
        yield {"s3": s3, "runtime": runtime, "dynamodb": dynamodb}


@pytest.fixture
def run(aws, event, context):
    """Run the function on these items; returns its output and the lines that it wrote."""

    def call(items, **batch_input):
        request = event("classify_batch")
        request["BatchInput"] |= batch_input
        request["Items"] = items
        lines = []

        def keep(params, **_):
            lines.extend(json.loads(line) for line in params["Body"].decode().splitlines())

        classify_batch.s3.meta.events.register("provide-client-params.s3.PutObject", keep)
        try:
            return classify_batch.lambda_handler(request, context), lines
        finally:
            classify_batch.s3.meta.events.unregister("provide-client-params.s3.PutObject", keep)

    return call


def serve(aws, *objects):
    for data in objects:
        if isinstance(data, str):
            aws["s3"].add_client_error("get_object", data, "message of S3")
        else:
            response = {"Body": body(data), "ContentLength": len(data), "ETag": '"etag"', "VersionId": "v1"}
            aws["s3"].add_response("get_object", response)


def respond(aws, *lines, **expected):
    text = "".join(json.dumps(line if "error" in line else {"predictions": line}) + "\n" for line in lines)
    response = {"Body": body(text.encode()), "InvokedProductionVariant": "AllTraffic"}
    aws["runtime"].add_response("invoke_endpoint", response, expected or None)


def store(aws):
    expected = {"Bucket": "results", "Key": RESULTS, "Body": ANY, "ContentType": "application/jsonlines"}
    aws["s3"].add_response("put_object", {}, expected)


def key(number):
    return {"Key": f"archive/{number}.png", "Size": 100}


def test_a_line_is_what_check_confidence_returns_and_its_outcome(aws, event, context):
    """The same image through the functions of a single execution gives the same result."""
    data = png()
    serve(aws, data)
    respond(aws, PREDICTIONS)
    request = event("classify_batch")
    written = []
    aws["s3"].add_response("put_object", {}, {"Bucket": ANY, "Key": RESULTS, "Body": ANY, "ContentType": ANY})
    classify_batch.s3.meta.events.register_first(
        "provide-client-params.s3.PutObject", lambda params, **_: written.append(params["Body"]), unique_id="test"
    )
    output = classify_batch.lambda_handler(request, context)
    classify_batch.s3.meta.events.unregister("provide-client-params.s3.PutObject", unique_id="test")
    (line,) = [json.loads(text) for text in written[0].decode().splitlines()]
    single = {"s3_bucket": "images", "s3_key": "archive/seven.png"}
    single |= {name: request["BatchInput"][name] for name in ("execution_arn", "threshold")}
    serve(aws, data)
    retrieved = retrieve_image.lambda_handler(single, context)
    del retrieved["image"]["data"]
    endpoint = {"name": "image-classification", "variant": "AllTraffic"}
    classified = {"predictions": PREDICTIONS, "endpoint": endpoint, "audit_rate": 0}
    result = check_confidence.lambda_handler(retrieved | classified, context)
    del result["review_item"]
    assert line == {"outcome": "accepted", **result, "time": line["time"]}
    counts = ("batch", "results", "items", "skipped", "images", "accepted", "review", "error", "errors", "confidence")
    assert {name: output[name] for name in counts} == {
        "batch": "5d1f3c9e-8a43-4a39-9d7c-3a2f6d2b1c55",
        "results": RESULTS,
        "items": 2,
        "skipped": 1,
        "images": 1,
        "accepted": 1,
        "review": 0,
        "error": 0,
        "errors": {},
        "confidence": 0.95,
    }


def test_calls_to_the_endpoint_are_retried_here_first():
    """A retry by the state machine reads the whole batch again. A single image has one attempt, and the machine's."""
    resources = transformed()["Resources"]
    code = "import classify_image; print(classify_image.runtime.meta.config.retries['total_max_attempts'])"
    attempts = []
    for function in ("ClassifyBatchFunction", "ClassifyImageFunction"):
        variables = resources[function]["Properties"]["Environment"]["Variables"]
        plain = {name: value for name, value in variables.items() if isinstance(value, str)}
        environment = {"PYTHONPATH": str(ROOT / "functions"), "AWS_DEFAULT_REGION": "us-east-1", **plain}
        done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
        attempts.append(int(done.stdout))
    assert attempts == [4, 1]


def test_trouble_with_an_image_is_a_line_in_its_place_and_the_others_are_classified(aws, run):
    serve(aws, png(), b"no image", "NoSuchKey", "AccessDenied", png(5))
    respond(aws, PREDICTIONS, DOUBTFUL)
    store(aws)
    archived = {"Key": "cold.png", "Size": 9, "StorageClass": "DEEP_ARCHIVE"}
    output, lines = run([*map(key, range(4)), archived, {"Size": 9}, key(5)])
    assert [(line.get("s3_key"), line["outcome"], line.get("error")) for line in lines] == [
        ("archive/0.png", "accepted", None),
        ("archive/1.png", "error", "UnsupportedImageError"),
        ("archive/2.png", "error", "ImageNotFoundError"),
        ("archive/3.png", "error", "ImageAccessDeniedError"),
        ("cold.png", "error", "ImageAccessDeniedError"),
        (None, "error", "InvalidInputError"),
        ("archive/5.png", "review", None),
    ]
    assert "archived in DEEP_ARCHIVE" in lines[4]["cause"]
    assert lines[6]["image"]["width"] == 5
    assert (output["images"], output["accepted"], output["review"], output["error"]) == (7, 1, 1, 5)
    assert output["errors"]["ImageAccessDeniedError"] == 2
    assert output["confidence"] == pytest.approx(1.55)


def test_a_reference_that_is_no_text_or_no_number_is_a_line(aws, run, monkeypatch):
    """A JSON Lines manifest can hold anything; one of its lines must not fail a whole batch."""
    store(aws)
    # A client without the stubs, which would respond before the key is encoded for the URL
    reader = botocore.session.get_session().create_client("s3", region_name="us-east-1")
    monkeypatch.setattr(retrieve_image, "s3", reader)
    half = "a\ud800.png"  # of a surrogate pair
    items = [{"Key": half}, {"Key": "a.png", "VersionId": half}, {"Key": ["a.png"], "StorageClass": {}}, 7, None, []]
    output, lines = run(items)
    assert [line["error"] for line in lines] == ["InvalidInputError"] * len(items)
    assert lines[0]["s3_key"] == r"a\ud800.png"  # UTF-8, and so DuckDB and Athena, cannot hold the character itself
    assert output["errors"] == {"InvalidInputError": len(items)}


def test_an_image_that_the_endpoint_rejects_is_a_line(aws, run):
    serve(aws, png(), png(), png())
    error = {"error": {"code": "UnsupportedImageError", "message": "not a readable image"}}
    respond(aws, PREDICTIONS, error, [{"label": "7", "probability": 1.5}])
    store(aws)
    _, lines = run([key(0), key(1), key(2)])
    assert [line.get("error") for line in lines] == [None, "EndpointResponseError", "EndpointResponseError"]
    assert "not a readable image" in lines[1]["cause"] and "1.5" in lines[2]["cause"]


def test_the_images_are_sent_as_json_lines(aws, run):
    data = png()
    serve(aws, data, data)
    line = json.dumps({"image": base64.b64encode(data).decode()})
    respond(
        aws, PREDICTIONS, PREDICTIONS,
        EndpointName="image-classification", Body=f"{line}\n{line}\n".encode(),
        ContentType="application/jsonlines", Accept="application/jsonlines",
    )  # fmt: skip
    store(aws)
    output, lines = run([key(0), key(1)])
    assert (len(lines), output["endpoint_requests"]) == (2, 1)


@pytest.mark.parametrize(
    "response",
    [
        json.dumps({"predictions": PREDICTIONS}).encode(),
        b"[0.95, 0.05]",
        b'{"probabilities": [0.95, 0.05], "labels": ["7", "9"]}',
        b'[{"label": "7", "score": 0.95}, {"label": "9", "score": 0.05}]',
        b'{"predictions": [[0.95, 0.05]]}',
    ],
    ids=["ours", "built-in algorithm", "JumpStart", "Hugging Face", "TensorFlow Serving"],
)
def test_an_endpoint_of_one_image_per_request_can_respond_in_every_format(aws, run, response):
    serve(aws, png(), png())
    for _ in range(2):
        expected = {"EndpointName": ANY, "Body": ANY, "ContentType": "image/png", "Accept": "application/json"}
        aws["runtime"].add_response("invoke_endpoint", {"Body": body(response)}, expected)
    store(aws)
    endpoint = {"name": "image-classification", "accept": "application/json", "labels": "7, 9"}
    output, lines = run([key(0), key(1)], requests="single", endpoint=endpoint)
    assert [line["predictions"] for line in lines] == [PREDICTIONS] * 2
    assert output["endpoint_requests"] == 2


def test_an_image_that_such_an_endpoint_rejects_is_a_line(aws, run):
    serve(aws, png(), png())
    aws["runtime"].add_client_error(
        "invoke_endpoint", "ModelError", "", modeled_fields={"OriginalStatusCode": 400, "OriginalMessage": "too small"}
    )
    aws["runtime"].add_response("invoke_endpoint", {"Body": body(json.dumps({"predictions": PREDICTIONS}).encode())})
    store(aws)
    _, lines = run([key(0), key(1)], requests="single")
    assert [line["outcome"] for line in lines] == ["error", "accepted"]
    assert "too small" in lines[0]["cause"]


@pytest.mark.parametrize("text", [b"", b"<html>It works!</html>\n" * 3, b'{"predictions": []}\n'])
def test_a_response_of_another_number_of_lines_is_an_exception(aws, run, text):
    serve(aws, png(), png())
    aws["runtime"].add_response("invoke_endpoint", {"Body": body(text)})
    with pytest.raises(EndpointResponseError, match="lines for 2 images"):
        run([key(0), key(1)])


def test_trouble_with_a_service_is_an_exception(aws, run):
    serve(aws, "SlowDown")
    with pytest.raises(ImageStoreUnavailableError):
        run([key(0)])
    for code, error in [("ThrottlingException", EndpointThrottledError), ("InternalFailure", EndpointUnavailableError)]:
        serve(aws, png())
        aws["runtime"].add_client_error("invoke_endpoint", code)
        with pytest.raises(error):
            run([key(0)])


def test_results_that_cannot_be_stored_are_an_exception(aws, run):
    serve(aws, png())
    respond(aws, PREDICTIONS)
    aws["s3"].add_client_error("put_object", "SlowDown")
    with pytest.raises(ResultsUnavailableError, match=RESULTS):
        run([key(0)])


def test_a_store_that_does_not_respond_is_an_exception(monkeypatch):
    def time_out(**_):
        raise ReadTimeoutError(endpoint_url="s3")

    monkeypatch.setattr(classify_batch.s3, "put_object", time_out)
    with pytest.raises(ResultsUnavailableError):
        classify_batch.write("results", "key", [])


@pytest.fixture
def reviews(monkeypatch):
    """The items that are put into the review table, by their image."""
    put = {}

    def put_item(**request):
        assert request["ConditionExpression"] == "attribute_not_exists(image)"
        put[request["Item"]["image"]["S"]] = request["Item"]

    monkeypatch.setattr(classify_batch.dynamodb, "put_item", put_item)
    return put


@pytest.mark.parametrize(("review_table", "audit_rate", "put"), [("", 1, 0), ("reviews", 0, 12), ("reviews", 1, 13)])
def test_images_go_to_review_only_where_a_table_is_named(aws, run, reviews, review_table, audit_rate, put):
    serve(aws, *[png()] * 13)
    respond(aws, PREDICTIONS, *[DOUBTFUL] * 12)
    store(aws)
    _, lines = run([key(number) for number in range(13)], review_table=review_table, audit_rate=audit_rate)
    assert [line["outcome"] for line in lines].count("review") == 12
    assert len(reviews) == put
    assert sum(item["reason"]["S"] == "audit" for item in reviews.values()) == put // 13


def test_a_batch_that_began_before_the_review_table_existed_goes_on(aws, event, context):
    request = event("classify_batch")
    del request["BatchInput"]["review_table"], request["BatchInput"]["audit_rate"]
    serve(aws, png())
    respond(aws, PREDICTIONS)
    store(aws)
    assert classify_batch.lambda_handler(request, context)["accepted"] == 1


def test_images_with_errors_are_not_reviewed(aws, run, reviews):
    serve(aws, b"text")
    store(aws)
    run([key(0)], review_table="reviews", audit_rate=1)
    assert reviews == {}


def test_an_existing_review_is_not_replaced(aws):
    """A batch that is repeated meets its own items, with the claims and decisions that people added to them."""
    aws["dynamodb"].add_client_error("put_item", "ConditionalCheckFailedException")
    classify_batch.put_review("reviews", {"image": {"S": "s3://images/a.png"}})


@pytest.mark.parametrize(
    "code", ["ProvisionedThroughputExceededException", "ThrottlingException", "InternalServerError"]
)
def test_a_review_table_that_does_not_accept_an_item_is_an_exception(aws, code):
    aws["dynamodb"].add_client_error("put_item", code)
    with pytest.raises(ReviewTableUnavailableError, match=code):
        classify_batch.put_review("reviews", {})


def test_a_batch_without_images_writes_an_empty_object(aws, run):
    store(aws)
    output, lines = run([{"Key": "archive/", "Size": 0}])
    assert (output["items"], output["skipped"], output["images"], lines) == (1, 1, 0, [])


def entries_of(*sizes):
    return [{"s3_key": str(number), "image": {"data": "x" * size}} for number, size in enumerate(sizes)]


def test_a_request_stays_below_the_endpoints_payload_limit():
    entries = entries_of(*[196_608] * 50)  # RetrieveImage's largest
    groups = list(requests(entries, 64))
    assert [entry for group in groups for entry in group] == entries
    assert [len(group) for group in groups] == [20, 20, 10]
    sizes = [sum(len(entry["image"]["data"]) + 13 for entry in group) for group in groups]
    assert max(sizes) <= classify_batch.MAX_REQUEST_BYTES < 4 * 1024 * 1024


def test_a_request_has_a_maximum_of_images_and_lines_of_errors_take_no_place():
    error = {"outcome": "error"}
    groups = list(requests([error, *entries_of(1, 1), error, error, *entries_of(1, 1, 1)], 2))
    assert [[("image" in entry) for entry in group] for group in groups] == [
        [False, True, True, False, False],
        [True, True],
        [True],
    ]
    assert list(requests([], 2)) == []


def test_side_by_side_keeps_the_order_and_runs_no_further_ahead_than_its_workers():
    running, started = threading.Semaphore(0), []

    def double(number):
        started.append(number)
        running.release()
        time.sleep(0.02 * (number % 3))
        return 2 * number

    results = side_by_side(double, iter(range(30)), 4)
    consumed = []
    for result in results:
        consumed.append(result)
        assert len(started) <= len(consumed) + 4
    assert consumed == [2 * number for number in range(30)]


def test_the_log_has_one_line_with_counts_and_no_image_bytes(aws, run, log):
    data = png()
    serve(aws, data)
    respond(aws, PREDICTIONS)
    store(aws)
    written = log(classify_batch)
    run([key(0)])
    (line,) = [json.loads(text) for text in written.getvalue().splitlines()]
    assert (line["message"], line["images"], line["batch"]) == (
        "batch classified",
        1,
        "5d1f3c9e-8a43-4a39-9d7c-3a2f6d2b1c55",
    )
    assert base64.b64encode(data).decode()[:40] not in written.getvalue()
