import io
import json

import pytest
from botocore.response import StreamingBody
from botocore.stub import ANY, Stubber

import summarise_batch

ARN = "arn:aws:states:us-east-1:123456789012:execution:machine:name"
OUTPUT = {
    "items": 3, "skipped": 1, "images": 2, "accepted": 1, "review": 0, "error": 1, "confidence": 0.9,
    "errors": {"UnsupportedImageError": 1}, "endpoint_requests": 1, "endpoint_bytes": 1000, "endpoint_ms": 5.0,
    "lambda_gb_seconds": 0.5,
}  # fmt: skip
BATCH = {"s3_bucket": "images", "execution_arn": ARN, "threshold": 0.75, "url_encoded": False}
ITEMS = [{"Key": "in/", "Size": 0}, {"Key": "in/a b.png"}, {"Key": "in/c.png", "VersionId": "v"}]
FAILED = {
    "Name": "broken", "Status": "FAILED", "Error": "EndpointUnavailableError", "Cause": "it is down",
    "Input": json.dumps({"BatchInput": BATCH, "Items": ITEMS}),
}  # fmt: skip


def lines(*rows):
    return "".join(json.dumps(row) + "\n" for row in rows)


@pytest.fixture
def run(event, context):
    """Run the function on these results; returns the summary and the objects that it wrote."""

    def call(succeeded, failed=(), partition_exists=False):
        files = {"SUCCEEDED": [{"Key": "s"}] if succeeded else [], "FAILED": [{"Key": "f"}] if failed else []}
        texts = [json.dumps({"ResultFiles": files | {"PENDING": []}})]
        texts += [lines(*rows) for rows in (succeeded, failed) if rows]
        written = {}
        with Stubber(summarise_batch.s3) as s3, Stubber(summarise_batch.glue) as glue:
            for text in texts:
                s3.add_response("get_object", {"Body": StreamingBody(io.BytesIO(text.encode()), len(text.encode()))})
            for _ in range(len(failed) + bool(failed)):
                s3.add_response("put_object", {}, {"Bucket": "results", "Key": ANY, "Body": ANY})
            summarise_batch.s3.meta.events.register_first(
                "provide-client-params.s3.PutObject",
                lambda params, **_: written.update({params["Key"]: params["Body"].decode()}),
                unique_id="test",
            )
            table = {"Name": "results", "StorageDescriptor": {"SerdeInfo": {"SerializationLibrary": "serde"}}}
            glue.add_response("get_table", {"Table": table})
            if partition_exists:
                glue.add_client_error("create_partition", "AlreadyExistsException")
            else:
                storage = table["StorageDescriptor"] | {"Location": "s3://results/results/execution=name/"}
                partition = {"Values": ["name"], "StorageDescriptor": storage}
                place = {"DatabaseName": "image_classification", "TableName": "results"}
                glue.add_response("create_partition", {}, place | {"PartitionInput": partition})
            summary = summarise_batch.lambda_handler(event("summarise_batch"), context)
            summarise_batch.s3.meta.events.unregister("provide-client-params.s3.PutObject", unique_id="test")
            s3.assert_no_pending_responses()
        return summary, written

    return call


def test_the_summary_adds_up_the_batches(run):
    summary, written = run(
        [{"batch": "a", **OUTPUT}, {"batch": "b", **OUTPUT, "accepted": 0, "review": 1, "confidence": 0.5}]
    )
    expected = {
        "execution_arn": ARN,
        "map_run_arn": "arn:aws:states:us-east-1:123456789012:mapRun:machine/Prefix:run",
        "results": "s3://results/results/execution=name/",
        "manifest": "s3://results/batches/name/run/manifest.json",
        "items": 6,
        "images": 4,
        "skipped": 2,
        "accepted": 1,
        "review": 1,
        "error": 2,
        "errors": {"UnsupportedImageError": 2},
        "mean_confidence": 0.7,
        "batches": 2,
        "failed_batches": 0,
    }
    assert {name: summary[name] for name in expected} == expected
    assert (written, "retry" in summary, "note" in summary) == ({}, False, False)
    assert summary["seconds"] > 0


def test_a_child_counts_once_however_often_it_is_reported(run):
    summary, _ = run([{"batch": "a", **OUTPUT}, {"batch": "a", **OUTPUT}])
    assert (summary["images"], summary["batches"]) == (2, 1)


def test_the_images_of_a_tolerated_failure_get_lines_and_a_list_to_repeat_them(run):
    summary, written = run([{"batch": "a", **OUTPUT}], [FAILED])
    assert (summary["images"], summary["error"], summary["skipped"], summary["failed_batches"]) == (4, 3, 2, 1)
    assert summary["errors"] == {"UnsupportedImageError": 1, "EndpointUnavailableError": 2}
    assert summary["retry"] == {"s3_bucket": "results", "s3_key": "retries/name.jsonl"}
    first, second = [json.loads(line) for line in written["results/execution=name/broken.jsonl"].splitlines()]
    assert first == {
        "outcome": "error",
        "s3_bucket": "images",
        "s3_key": "in/a b.png",
        "execution_arn": ARN,
        "error": "EndpointUnavailableError",
        "cause": "it is down",
        "time": first["time"],
    }
    assert second["s3_version_id"] == "v"
    assert [json.loads(line) for line in written["retries/name.jsonl"].splitlines()] == [
        {"s3_bucket": "images", "s3_key": "in/a b.png"},
        {"s3_bucket": "images", "s3_key": "in/c.png", "s3_version_id": "v"},
    ]


def test_a_child_that_timed_out_has_its_status_as_its_error(run):
    summary, _ = run([], [{**FAILED, "Error": None, "Cause": None, "Status": "TIMED_OUT"}])
    assert summary["errors"] == {"TIMED_OUT": 2}
    assert summary["mean_confidence"] is None


def test_an_empty_source_says_so(run):
    summary, _ = run([])
    assert (summary["images"], summary["mean_confidence"]) == (0, None)
    assert summary["note"] == "The source names no images: nothing was classified."


def test_a_summary_can_be_repeated(run):
    assert run([{"batch": "a", **OUTPUT}], partition_exists=True)[0]["images"] == 2


def test_the_cost_is_estimated_from_list_prices():
    sums = summarise_batch.add_up(iter([{"batch": "a", **OUTPUT}])) | {
        "children": 5000, "images": 10**6, "items": 10**6, "endpoint_bytes": 67e9, "lambda_gb_seconds": 8000,
    }  # fmt: skip
    cost = summarise_batch.cost(sums, {"children": 0})
    assert cost["step_functions"] == pytest.approx(0.125 + 0.005, abs=0.01)
    assert cost["lambda"] == pytest.approx(0.108, abs=0.001)
    assert cost["s3"] == pytest.approx(0.4 + 0.025 + 0.005)
    assert cost["endpoint_data"] == pytest.approx(1.072)
    assert cost["total"] == pytest.approx(sum(value for name, value in cost.items() if name != "total"))


def test_every_price_has_its_source():
    prices = {name: price for name, price in summarise_batch.PRICES.items() if name != "comment"}
    assert all(price["usd"] > 0 and price["read"].startswith("2026-") for price in prices.values())
