"""CloudWatch Logs: the pages of FilterLogEvents.

https://docs.aws.amazon.com/AmazonCloudWatchLogs/latest/APIReference/API_FilterLogEvents.html
"""

import json
from collections.abc import Callable
from typing import Any

from ministack.core.responses import json_response
from ministack.services import cloudwatch_logs

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
