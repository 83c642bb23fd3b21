"""Metrics of log lines, and the states of alarms on them."""

import json

import pytest

from monitoring import metrics

ALARM = {
    "Namespace": "ImageClassification",
    "MetricName": "Accepted",
    "Dimensions": [{"Name": "service", "Value": "stack"}],
    "Statistic": "Average",
    "EvaluationPeriods": 3,
    "ComparisonOperator": "LessThanThreshold",
    "Threshold": 0.5,
    "TreatMissingData": "notBreaching",
}
GOOD, BAD = [1.0, 1.0, 0.0], [0.0, 0.0, 1.0]


def test_a_log_line_has_the_values_of_its_metrics():
    line = {
        "_aws": {
            "Timestamp": 1_500,
            "CloudWatchMetrics": [
                {"Namespace": "N", "Dimensions": [["service"]], "Metrics": [{"Name": "Images"}, {"Name": "Accepted"}]}
            ],
        },
        "service": "stack",
        "Images": [1, 1],
        "Accepted": [0.5],
    }
    service = frozenset({("service", "stack")})
    assert list(metrics.embedded_values(json.dumps(line))) == [
        (("N", "Images", service), 1.5, 1),
        (("N", "Images", service), 1.5, 1),
        (("N", "Accepted", service), 1.5, 0.5),
    ]
    assert list(metrics.embedded_values('{"message": "prediction"}')) == []
    assert metrics.metric_of(ALARM) == ("ImageClassification", "Accepted", service)


@pytest.mark.parametrize(
    ("periods", "state"),
    [
        ([BAD, BAD, BAD], "ALARM"),
        ([GOOD, BAD, BAD, BAD], "ALARM"),
        ([BAD, BAD, BAD, GOOD], "OK"),
        ([BAD, GOOD, BAD], "OK"),
        ([BAD, BAD], "OK"),
        ([BAD, [], BAD], "OK"),
        ([], "OK"),
    ],
)
def test_an_alarm_is_on_while_all_its_periods_breach_its_limit(periods, state):
    assert metrics.state(ALARM, periods) == state


def test_missing_data_and_datapoints_to_alarm_count_as_the_alarm_says():
    assert metrics.state(ALARM | {"TreatMissingData": "breaching"}, [BAD, [], BAD]) == "ALARM"
    assert metrics.state(ALARM | {"TreatMissingData": "breaching"}, [BAD]) == "ALARM"
    assert metrics.state(ALARM | {"DatapointsToAlarm": 2}, [BAD, GOOD, BAD]) == "ALARM"


@pytest.mark.parametrize(
    ("comparison", "above", "equal", "below"),
    [
        ("GreaterThanOrEqualToThreshold", "ALARM", "ALARM", "OK"),
        ("GreaterThanThreshold", "ALARM", "OK", "OK"),
        ("LessThanOrEqualToThreshold", "OK", "ALARM", "ALARM"),
        ("LessThanThreshold", "OK", "OK", "ALARM"),
    ],
)
def test_an_alarm_compares_as_cloudwatch_does(comparison, above, equal, below):
    alarm = ALARM | {"ComparisonOperator": comparison, "EvaluationPeriods": 1}
    assert [metrics.state(alarm, [[value]]) for value in (0.6, 0.5, 0.4)] == [above, equal, below]


@pytest.mark.parametrize(
    ("name", "value"), [("Sum", 6), ("Average", 2), ("Minimum", 1), ("Maximum", 3), ("SampleCount", 3), ("p50", 2)]
)
def test_statistics(name, value):
    assert metrics.statistic(name, [3.0, 1.0, 2.0]) == value
