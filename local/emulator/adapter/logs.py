"""CloudWatch Logs: the pages of FilterLogEvents, and the metrics in log lines.

https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_FilterLogEvents.html
https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
"""

import json
from collections.abc import Callable
from typing import Any

from ministack.core.responses import json_response
from ministack.services import cloudwatch, cloudwatch_logs

from local.emulator.adapter import override

PAGE = 10_000  # events


@override(cloudwatch_logs, "_filter_log_events")
def filter_log_events(original: Callable[[dict[str, Any]], Any], data: dict[str, Any]) -> Any:
    """Return a token for the next page: ministack drops all events after the first one.

    The token is the time of a page's last event, and how many events of that millisecond have been returned.
    """
    limit, skipped = data.get("limit", PAGE), 0
    if token := data.get("nextToken"):
        data["startTime"], skipped = map(int, token.split("-"))
    status, headers, body = original(data | {"limit": PAGE})
    if status != 200:
        return status, headers, body
    found = json.loads(body)["events"]
    response: dict[str, Any] = {"events": found[skipped : skipped + limit], "searchedLogStreams": []}
    if len(found) > skipped + limit or len(found) == PAGE:
        last = response["events"][-1]["timestamp"]
        returned = sum(event["timestamp"] == last for event in found[: skipped + limit])
        response["nextToken"] = f"{last}-{returned}"
    return json_response(response)


@override(cloudwatch_logs, "_append_log_events")
def append_log_events(original: Callable[..., None], stream: dict[str, Any], events: list[dict[str, Any]]) -> None:
    """Store the metrics of lines in the embedded metric format, as CloudWatch does for every log group."""
    original(stream, events)
    for event in events:
        if '"CloudWatchMetrics"' in event["message"]:
            store_metrics(event["message"])


def store_metrics(message: str) -> None:
    """Store a line's metrics. A line that is not in the format is a log line like any other."""
    try:
        line = json.loads(message)
        metadata = line["_aws"]
        found = [
            (declared["Namespace"], metric, {name: line[name] for name in names}, line[metric["Name"]])
            for declared in metadata["CloudWatchMetrics"]
            for names in declared["Dimensions"]
            for metric in declared["Metrics"]
        ]
        seconds = metadata["Timestamp"] / 1000
    except (ValueError, KeyError, TypeError):
        return
    for namespace, metric, dimensions, value in found:
        values, unit = value if isinstance(value, list) else [value], metric.get("Unit", "None")
        cloudwatch._store_datum(namespace, metric["Name"], dimensions, seconds, unit, None, values, None, None)
