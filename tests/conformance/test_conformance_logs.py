"""CloudWatch Logs, as AWS documents it."""

import json
import time
import uuid
from datetime import UTC, datetime, timedelta

import pytest

from resources import eventually


def test_events_are_found_in_pages(client):
    """https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_FilterLogEvents.html"""
    logs, group, stream = client("logs"), "pages", "stream"
    logs.create_log_group(logGroupName=group)
    logs.create_log_stream(logGroupName=group, logStreamName=stream)
    now = 1_795_669_658_000
    times = [now, now + 1, now + 1, now + 1, now + 1, now + 2, now + 3]
    events = [{"timestamp": time, "message": str(number)} for number, time in enumerate(times)]
    logs.put_log_events(logGroupName=group, logStreamName=stream, logEvents=events)
    pages = logs.get_paginator("filter_log_events").paginate(
        logGroupName=group, startTime=now + 1, PaginationConfig={"PageSize": 2}
    )
    assert [[event["message"] for event in page["events"]] for page in pages] == [["1", "2"], ["3", "4"], ["5", "6"]]


def embedded(service, **more):
    """A log line with a metric of two dimension sets, as a function prints it."""
    metric = {"Namespace": "Conformance", "Dimensions": [["service"], ["service", "label"]],
              "Metrics": [{"Name": "Confidence", "Unit": "None"}]}  # fmt: skip
    metadata = {"Timestamp": time.time_ns() // 1_000_000, "CloudWatchMetrics": [metric]}
    return json.dumps({"_aws": metadata, "service": service, "label": "seven", "Confidence": [0.5, 0.7]} | more)


def statistics(client, **dimensions):
    """The number of values, and their mean, of the metric with exactly these dimensions."""
    query = {
        "Id": "metric",
        "MetricStat": {
            "Metric": {
                "Namespace": "Conformance",
                "MetricName": "Confidence",
                "Dimensions": [{"Name": name, "Value": value} for name, value in dimensions.items()],
            },
            "Period": 3600,
        },
    }
    end = datetime.now(UTC) + timedelta(minutes=1)
    results = []
    for stat in ("SampleCount", "Average"):
        query["MetricStat"]["Stat"] = stat
        response = client("cloudwatch").get_metric_data(
            MetricDataQueries=[query], StartTime=end - timedelta(minutes=5), EndTime=end
        )
        results += response["MetricDataResults"][0]["Values"]
    return results


def test_a_functions_log_lines_become_metrics_with_each_set_of_dimensions(client, function, seconds_to_end):
    """https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html"""
    service = uuid.uuid4().hex
    line = embedded(service)
    client("lambda").invoke(FunctionName=function(f"def handler(event, context): print({line!r})"))
    expected = [2, pytest.approx(0.6)]
    assert eventually(lambda: statistics(client, service=service, label="seven") == expected, seconds_to_end)
    assert statistics(client, service=service) == expected


def test_lines_put_by_anyone_become_metrics_and_what_is_not_in_the_format_stays_a_line(client):
    """https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Manual.html"""
    logs, group, service = client("logs"), f"embedded-{uuid.uuid4().hex[:8]}", uuid.uuid4().hex
    logs.create_log_group(logGroupName=group)
    logs.create_log_stream(logGroupName=group, logStreamName="stream")
    good = embedded(service, Confidence=0.25)
    wrong = ['{"_aws": {"CloudWatchMetrics": 7}}', good[:-5], good.replace('"Timestamp"', '"Time"')]
    events = [{"timestamp": time.time_ns() // 1_000_000, "message": message} for message in [*wrong, good]]
    logs.put_log_events(logGroupName=group, logStreamName="stream", logEvents=events)
    assert eventually(lambda: statistics(client, service=service) == [1, 0.25])
    assert len(logs.filter_log_events(logGroupName=group)["events"]) == 4
