"""What became of images, read from the prediction log: a log group of CloudWatch Logs, or files of JSON Lines.

functions/prediction_log.py says what a line holds. The log group has other lines too (of the runtime, of metrics):
they are passed over, and so is what is not JSON. The same calls work on AWS and on the local stack.

    lines = outcomes.from_log_group(boto3.client("logs"), outputs["PredictionLogGroupName"], since=yesterday)
    lines = outcomes.from_files(Path("exported").rglob("*.gz"))
"""

import gzip
import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any

MESSAGE = "prediction"
FILTER = f'{{ $.message = "{MESSAGE}" }}'  # the emulator ignores it, so each line is looked at here as well
TIME_FORMAT = "%Y-%m-%d %H:%M:%S,%f%z"  # Powertools Logger's


def from_log_group(logs, name: str, since: datetime | None = None) -> list[dict[str, Any]]:
    """The lines of a log group in the order of time, from the moment `since` on. `logs` is boto3's client."""
    asked = {"logGroupName": name, "filterPattern": FILTER}
    if since:
        asked["startTime"] = int(since.timestamp() * 1000)
    pages = logs.get_paginator("filter_log_events").paginate(**asked)
    return parsed(event["message"] for page in pages for event in page["events"])


def from_files(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The lines of files, .gz or not: JSON Lines, or an export of CloudWatch Logs, which puts the time before each."""
    lines = []
    for path in paths:
        opened = gzip.open if path.suffix == ".gz" else open
        with opened(path, "rt", encoding="utf-8", errors="replace") as file:
            lines += parsed(file)
    return lines


def parsed(texts: Iterable[str]) -> list[dict[str, Any]]:
    """Those of the texts that are lines of the prediction log."""
    lines = []
    for text in texts:
        _time, brace, rest = text.partition("{")
        try:
            line = json.loads(brace + rest)
        except ValueError:
            continue
        if isinstance(line, dict) and line.get("message") == MESSAGE and "outcome" in line:
            lines.append(line)
    return lines


def time_of(line: dict[str, Any]) -> datetime:
    """When the line was written."""
    return datetime.strptime(line["timestamp"], TIME_FORMAT)
