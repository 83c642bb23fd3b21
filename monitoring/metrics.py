"""Metrics from log lines in the embedded metric format, their statistics, and alarms on them, without CloudWatch.

    lines = metrics.embedded_values(message)    # what CloudWatch takes from a log line
    metrics.state(alarm, periods)               # an alarm of DescribeAlarms, and the values of metrics by period

https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
"""

import ast
import json
import operator
import re
import statistics
from collections.abc import Callable, Iterator, Mapping
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

OPERATORS: dict[type[ast.cmpop], Callable[[float, float], bool]] = {
    ast.Gt: operator.gt,
    ast.GtE: operator.ge,
    ast.Lt: operator.lt,
    ast.LtE: operator.le,
}

FURTHER_PERIODS = 2  # that are looked at when data is missing

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


def metric_of(described: dict[str, Any]) -> Metric:
    """The metric of an alarm, or of a metric within it."""
    dimensions = frozenset((each["Name"], each["Value"]) for each in described["Dimensions"])
    return described["Namespace"], described["MetricName"], dimensions


def metrics_of(alarm: dict[str, Any]) -> list[Metric]:
    """The metrics of an alarm: one, or those of its metric math."""
    if not alarm.get("Metrics"):
        return [metric_of(alarm)]
    return [metric_of(each["MetricStat"]["Metric"]) for each in alarm["Metrics"] if "MetricStat" in each]


def evaluated(expression: str, values: Mapping[str, float]) -> float:
    """Metric math of numbers, Ids, comparisons, AND and IF(): what LabelDriftAlarm uses.

    Raises ValueError or SyntaxError for anything else.
    https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/using-metric-math.html
    """

    def value(node: ast.expr) -> float:
        match node:
            case ast.Constant(value=int() | float() as number):
                return float(number)
            case ast.Name(id=name) if name in values:
                return values[name]
            case ast.Compare(left=left, ops=[compare], comparators=[right]) if type(compare) in OPERATORS:
                return float(OPERATORS[type(compare)](value(left), value(right)))
            case ast.BoolOp(op=ast.And(), values=operands):
                return float(all(map(value, operands)))
            case ast.Call(func=ast.Name(id="IF"), args=[condition, then, otherwise]):
                return value(then if value(condition) else otherwise)
        raise ValueError(f"{ast.unparse(node)} in {expression} is not evaluated")

    return value(ast.parse(re.sub(r"\bAND\b", "and", expression), mode="eval").body)


def compared(alarm: dict[str, Any], measured: Mapping[Metric, list[float]]) -> float | None:
    """What an alarm compares with its threshold in a period; None if one of its metrics has no values."""
    numbers = [measured.get(metric, []) for metric in metrics_of(alarm)]
    if not all(numbers):
        return None
    if not alarm.get("Metrics"):
        return statistic(alarm["Statistic"], *numbers)
    (expression,) = [each["Expression"] for each in alarm["Metrics"] if "Expression" in each]
    stats = [(each["Id"], each["MetricStat"]["Stat"]) for each in alarm["Metrics"] if "MetricStat" in each]
    return evaluated(expression, {name: statistic(stat, n) for (name, stat), n in zip(stats, numbers, strict=True)})


def state(alarm: dict[str, Any], periods: list[Mapping[Metric, list[float]]]) -> str:
    """ALARM or OK: the state of an alarm, as DescribeAlarms returns it, after these periods.

    periods: the values of metrics in each of the alarm's periods, the latest last. Periods without values are missing
    data: the latest others count in their place, from a few more periods (here two, as in AWS's example), and if these
    are too few, what TreatMissingData says (breaching, or otherwise not breaching).
    https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/alarms-and-missing-data.html
    """
    count = alarm["EvaluationPeriods"]
    missing = alarm.get("TreatMissingData") == "breaching"
    compare, threshold = COMPARISONS[alarm["ComparisonOperator"]], alarm["Threshold"]
    recent = [compared(alarm, measured) for measured in periods[-count - FURTHER_PERIODS :]]
    existing = [value for value in recent if value is not None][-count:]
    breaching = [missing] * (count - len(existing)) + [compare(value, threshold) for value in existing]
    return "ALARM" if sum(breaching) >= alarm.get("DatapointsToAlarm", count) else "OK"
