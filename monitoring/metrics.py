"""Metrics from log lines in the embedded metric format, their statistics, and alarms on them, without CloudWatch.

    lines = metrics.embedded_values(message)               # what CloudWatch takes from a log line
    metrics.state(alarm, [[0.9, 1.0], [0.2]])       # an alarm of DescribeAlarms, and its metric's values by period

https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
"""

import json
import operator
import statistics
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

STATISTICS: dict[str, Callable[[list[float]], float]] = {
    "Sum": sum,
    "Average": statistics.fmean,
    "Minimum": min,
    "Maximum": max,
    "SampleCount": len,
}
COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "GreaterThanOrEqualToThreshold": operator.ge,
    "GreaterThanThreshold": operator.gt,
    "LessThanOrEqualToThreshold": operator.le,
    "LessThanThreshold": operator.lt,
}

Metric = tuple[str, str, frozenset[tuple[str, str]]]  # namespace, name, dimensions


def embedded_values(message: str) -> Iterator[tuple[Metric, float, float]]:
    """The values in a log line: (metric, seconds since 1970, value). Nothing for another line."""
    if not message.startswith('{"_aws"'):
        return
    line = json.loads(message)
    for declared in line["_aws"]["CloudWatchMetrics"]:
        dimensions = frozenset((name, line[name]) for name in declared["Dimensions"][0])
        for metric in declared["Metrics"]:
            for value in line[metric["Name"]]:
                yield (declared["Namespace"], metric["Name"], dimensions), line["_aws"]["Timestamp"] / 1000, value


def statistic(name: str, numbers: list[float]) -> float:
    """A CloudWatch statistic: Sum, Average, Minimum, Maximum, SampleCount or a percentile such as p90."""
    if name.startswith("p"):
        return float(np.percentile(numbers, float(name[1:])))
    return STATISTICS[name](numbers)


def metric_of(alarm: dict[str, Any]) -> Metric:
    dimensions = frozenset((each["Name"], each["Value"]) for each in alarm["Dimensions"])
    return alarm["Namespace"], alarm["MetricName"], dimensions


def state(alarm: dict[str, Any], periods: list[list[float]]) -> str:
    """ALARM or OK: the state of an alarm on one metric, as DescribeAlarms returns it, after these periods.

    periods: the metric's values in each of the alarm's periods, the latest last; a period without values is missing
    data, which counts as TreatMissingData says (breaching, or otherwise not breaching).
    CloudWatch also looks at a few periods before when some are missing:
    https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/alarms-and-missing-data.html
    """
    count = alarm["EvaluationPeriods"]
    missing = alarm.get("TreatMissingData") == "breaching"
    compare, threshold = COMPARISONS[alarm["ComparisonOperator"]], alarm["Threshold"]
    recent: list[list[float]] = [[]] * (count - len(periods)) + periods[-count:]
    breaching = [
        compare(statistic(alarm["Statistic"], numbers), threshold) if numbers else missing for numbers in recent
    ]
    return "ALARM" if sum(breaching) >= alarm.get("DatapointsToAlarm", count) else "OK"
