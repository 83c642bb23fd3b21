import pytest

import prepare_batch
from contract import InvalidInputError


@pytest.fixture
def prepare(event, context):
    def call(request):
        return prepare_batch.lambda_handler(event("prepare_batch") | {"request": request}, context)

    return call


def test_the_stacks_defaults_complete_the_request(event, context):
    assert prepare_batch.lambda_handler(event("prepare_batch"), context) == {
        "s3_bucket": "images",
        "s3_prefix": "archive/",
        "threshold": 0.9,
        "batch_size": 300,
        "max_concurrency": 4,
        "tolerated_failure_percentage": 0,
        "review": False,
        "source": "prefix",
    }


@pytest.mark.parametrize(
    ("key", "source"),
    [
        ("lists/a.csv", "csv"),
        ("lists/a.csv.gz", "csv"),
        ("lists/a.jsonl", "jsonl"),
        ("retries/name.jsonl.gz", "jsonl"),
        ("inventory/images/all/2026-11-24T01-00Z/manifest.json", "inventory"),
    ],
)
def test_the_name_of_a_manifest_tells_its_format(prepare, key, source):
    assert prepare({"s3_bucket": "images", "s3_key": key})["source"] == source


def test_a_format_overrides_the_name(prepare):
    assert prepare({"s3_bucket": "images", "s3_key": "list.csv", "format": "jsonl"})["source"] == "jsonl"


def test_an_empty_prefix_is_the_whole_bucket(prepare):
    assert prepare({"s3_bucket": "images", "s3_prefix": ""})["source"] == "prefix"


@pytest.mark.parametrize(
    ("request_", "problem"),
    [
        ({}, "s3_bucket"),
        ({"s3_bucket": "images"}, "name either s3_prefix, or s3_key"),
        ({"s3_bucket": "images", "s3_prefix": "a/", "s3_key": "b.csv"}, "name either s3_prefix, or s3_key"),
        ({"s3_bucket": "images", "s3_prefix": "a/", "format": "csv"}, "format is for a manifest"),
        ({"s3_bucket": "images", "s3_key": "list.txt"}, "add format, one of csv, jsonl, inventory"),
        ({"s3_bucket": "images", "s3_key": "list.txt", "format": "xml"}, "format must be one of"),
        ({"s3_bucket": "images", "s3_prefix": 7}, "s3_prefix must be string"),
        ({"s3_bucket": "images", "s3_prefix": "a/", "treshold": 0.5}, "treshold"),
        ({"s3_bucket": "images", "s3_prefix": "a/", "threshold": 0}, "threshold must be bigger than 0"),
        ({"s3_bucket": "images", "s3_prefix": "a/", "threshold": "0.5"}, "threshold must be number"),
        ({"s3_bucket": "images", "s3_prefix": "a/", "batch_size": 0}, "batch_size"),
        ({"s3_bucket": "images", "s3_prefix": "a/", "batch_size": 1001}, "batch_size"),
        ({"s3_bucket": "images", "s3_prefix": "a/", "batch_size": 1.5}, "batch_size must be integer"),
        ({"s3_bucket": "images", "s3_prefix": "a/", "max_concurrency": 10_001}, "max_concurrency"),
        ({"s3_bucket": "images", "s3_prefix": "a/", "tolerated_failure_percentage": 101}, "tolerated_failure"),
        ({"s3_bucket": "images", "s3_prefix": "a/", "review": "yes"}, "review must be boolean"),
        (["images"], "it must be object"),
        (None, "it must be object"),
    ],
)
def test_an_invalid_request_fails_with_what_to_change(prepare, request_, problem):
    with pytest.raises(InvalidInputError, match=problem):
        prepare(request_)
