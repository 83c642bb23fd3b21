import gzip
import json
from datetime import UTC, datetime

import boto3
import pytest
from botocore.stub import Stubber

import prediction_log as writer
from monitoring import prediction_log

ACCEPTED = {
    "timestamp": "2026-11-24 09:00:01,250+0000",
    "message": "prediction",
    "outcome": "accepted",
    "s3_key": "uploads/seven.png",
    "label": "7",
    "confidence": 0.97,
}
ERROR = {"message": "prediction", "outcome": "error", "s3_key": "{odd} key.png", "error": "UnsupportedImageError"}
OTHER_LINES = [
    "START RequestId: 20d91389 Version: 1",
    '{"_aws": {"CloudWatchMetrics": []}, "Images": [1.0]}',
    '{"message": "image classified", "label": "7"}',
    '{"message": "prediction"}',
    '["prediction"]',
    '{"message": "predic',
]


@pytest.fixture
def logs():
    client = boto3.client("logs")
    with Stubber(client) as stubber:
        yield client, stubber
        stubber.assert_no_pending_responses()


def test_a_log_group_is_read_page_by_page_and_other_lines_are_skipped(logs):
    client, stubber = logs
    query = {"logGroupName": "predictions", "filterPattern": '{ $.message = "prediction" }', "startTime": 1795510800000}
    first = [{"message": text} for text in [*OTHER_LINES, json.dumps(ACCEPTED)]]
    stubber.add_response("filter_log_events", {"events": first, "nextToken": "2"}, query)
    stubber.add_response("filter_log_events", {"events": [{"message": json.dumps(ERROR)}]}, query | {"nextToken": "2"})
    since = datetime(2026, 11, 24, 9, tzinfo=UTC)
    assert prediction_log.from_log_group(client, "predictions", since) == [ACCEPTED, ERROR]


def test_an_empty_log_group_has_no_lines(logs):
    client, stubber = logs
    query = {"logGroupName": "predictions", "filterPattern": '{ $.message = "prediction" }'}
    stubber.add_response("filter_log_events", {"events": []}, query)
    assert prediction_log.from_log_group(client, "predictions") == []


def test_files_of_json_lines_and_exports_of_cloudwatch_logs_are_read(tmp_path):
    plain, export = tmp_path / "lines.jsonl", tmp_path / "000000.gz"
    plain.write_text("\n".join([*OTHER_LINES, json.dumps(ACCEPTED)]))
    export.write_bytes(gzip.compress(f"2026-11-24T09:00:01.250Z {json.dumps(ERROR)}\n".encode()))
    assert prediction_log.from_files([plain, export]) == [ACCEPTED, ERROR]


def test_a_redriven_execution_counts_as_its_last_outcome():
    arn = "arn:aws:states:us-east-1:123456789012:execution:machine:name"
    failed, other, again = (ERROR | {"execution_arn": each} for each in (arn, f"{arn}2", f"{arn}-redrive-1"))
    accepted = ACCEPTED | {"execution_arn": f"{arn}-redrive-2", "redrives": 2}
    lines = [failed, other, other, again, accepted]
    assert prediction_log.parsed(map(json.dumps, lines)) == [other, accepted]


def test_the_time_of_a_line_is_its_parsed_timestamp():
    assert prediction_log.time_of(ACCEPTED) == datetime(2026, 11, 24, 9, 0, 1, 250000, tzinfo=UTC)


def test_the_reader_looks_for_the_message_that_the_function_writes():
    assert prediction_log.MESSAGE == writer.MESSAGE


def test_only_the_fields_that_are_needed_are_kept_and_redrives_are_one_image_all_the_same(logs):
    client, stubber = logs
    arn = "arn:aws:states:us-east-1:0:execution:ClassifyImage:name"
    lines = [ERROR | {"execution_arn": arn}, ACCEPTED | {"execution_arn": f"{arn}-redrive-1"}]
    stubber.add_response("filter_log_events", {"events": [{"message": json.dumps(line)} for line in lines]})
    found = prediction_log.from_log_group(client, "predictions", fields=("label", "outcome", "s3_etag"))
    assert found == [{"label": "7", "outcome": "accepted"}]


def test_a_line_names_the_version_or_in_a_bucket_without_versions_the_etag():
    result = {"s3_key": "a.png", "label": "7", "confidence": 0.9, "accepted": True, "predictions": []}
    assert writer.decided(result | {"s3_version_id": "v"})["s3_version_id"] == "v"
    assert writer.decided(result | {"s3_etag": "abc"})["s3_etag"] == "abc"
