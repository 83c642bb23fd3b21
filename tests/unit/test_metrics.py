"""Metrics of log lines, and the states of alarms on them."""

import json

import pytest

from documents import RESOURCES
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
METRIC = ("ImageClassification", "Accepted", frozenset({("service", "stack")}))
GOOD, BAD, NOTHING = {METRIC: [1.0, 1.0, 0.0]}, {METRIC: [0.0, 0.0, 1.0]}, {}


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
        ([BAD, NOTHING, BAD], "OK"),
        ([BAD, BAD, NOTHING, BAD], "ALARM"),
        ([BAD, BAD, BAD, NOTHING, NOTHING], "ALARM"),
        ([BAD, BAD, BAD, NOTHING, NOTHING, NOTHING], "OK"),
        ([GOOD, BAD, NOTHING, BAD], "OK"),
        ([], "OK"),
    ],
)
def test_an_alarm_is_on_while_all_its_periods_breach_its_limit(periods, state):
    assert metrics.state(ALARM, periods) == state


def test_missing_data_and_datapoints_to_alarm_count_as_the_alarm_says():
    assert metrics.state(ALARM | {"TreatMissingData": "breaching"}, [BAD, NOTHING, BAD]) == "ALARM"
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
    assert [metrics.state(alarm, [{METRIC: [value]}]) for value in (0.6, 0.5, 0.4)] == [above, equal, below]


@pytest.mark.parametrize(
    ("name", "value"), [("Sum", 6), ("Average", 2), ("Minimum", 1), ("Maximum", 3), ("SampleCount", 3), ("p50", 2)]
)
def test_statistics(name, value):
    assert metrics.statistic(name, [3.0, 1.0, 2.0]) == value


def label_drift_alarm(limit):
    """The template's alarm, as DescribeAlarms returns it for a stack of this name and limit."""
    text = json.dumps(RESOURCES["LabelDriftAlarm"]["Properties"]).replace("${MaxLabelDrift}", limit)
    alarm = json.loads(text.replace('{"Ref": "AWS::StackName"}', '"stack"'))
    for each in alarm["Metrics"]:
        if "Expression" in each:
            each["Expression"] = each["Expression"]["Fn::Sub"]
    return alarm


def drifted(*values, chance):
    service = frozenset({("service", "stack")})
    return {
        ("ImageClassification", "LabelDrift", service): list(values),
        ("ImageClassification", "LabelDriftByChance", service): chance,
    }


@pytest.mark.parametrize(
    ("period", "state"),
    [
        (drifted(0.3, chance=[0.1]), "ALARM"),
        (drifted(0.25, chance=[0.1]), "OK"),  # not above the limit
        (drifted(0.3, chance=[0.3]), "OK"),  # not above chance
        (drifted(0.3, chance=[0.4]), "OK"),
        (drifted(0.2, chance=[0.1]), "OK"),
        (drifted(0.1, 0.3, chance=[0.2, 0.1]), "ALARM"),  # the maximum of each
        (drifted(chance=[0.1]), "OK"),
        ({}, "OK"),
    ],
)
def test_label_drift_sets_its_alarm_off_above_the_limit_and_above_chance(period, state):
    alarm = label_drift_alarm("0.25")
    assert metrics.state(alarm, [period] * 3) == state
    assert metrics.state(alarm, [period] * 2) == "OK"


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        ("IF(a > 1, b, 0.5)", 3),
        ("IF(a >= 3, b, 0.5)", 0.5),
        ("a < b AND b <= 3", 1),
        ("a < b AND b < 3 AND a > 0", 0),
        ("ANDES > 3", 1),  # an Id that begins like an operator
    ],
)
def test_metric_math(expression, value):
    assert metrics.evaluated(expression, {"a": 2, "b": 3, "ANDES": 4}) == value


@pytest.mark.parametrize("expression", ["FILL(a, 0)", "a + 1", "c > 1", "a > 1 OR a < 0", "__import__('os')", "'a'"])
def test_metric_math_that_is_not_evaluated_is_an_error(expression):
    with pytest.raises((ValueError, SyntaxError)):
        metrics.evaluated(expression, {"a": 2})
