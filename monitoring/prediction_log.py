"""Read the prediction log, which has the outcome of every image, from CloudWatch Logs or from JSON Lines files.

A redriven execution counts as its last outcome: only the last line of an execution and its redrives is returned.
functions/prediction_log.py documents a line. The log group also has lines of the runtime and of metrics: these and
anything that is not JSON are skipped. The same calls work on AWS and on the local stack.

    lines = prediction_log.from_log_group(boto3.client("logs"), outputs["PredictionLogGroupName"], since=yesterday)
    lines = prediction_log.from_files(Path("exported").rglob("*.gz"))
"""

import gzip
import json
import re
from collections.abc import Collection, Iterable, Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

from botocore.client import BaseClient

MESSAGE = "prediction"
FILTER = f'{{ $.message = "{MESSAGE}" }}'  # the emulator ignores it, so parsed() filters too
TIME_FORMAT = "%Y-%m-%d %H:%M:%S,%f%z"  # of Powertools Logger


def from_log_group(
    logs: BaseClient, name: str, since: datetime | None = None, fields: Collection[str] = ()
) -> list[dict[str, Any]]:
    """The lines of a log group in chronological order, starting at `since`. `logs` is a boto3 client.

    fields: the only ones that are kept of each line, for many lines.
    """
    query: dict[str, Any] = {"logGroupName": name, "filterPattern": FILTER}
    if since:
        query["startTime"] = int(since.timestamp() * 1000)
    pages = logs.get_paginator("filter_log_events").paginate(**query)
    return parsed((event["message"] for page in pages for event in page["events"]), fields)


def from_files(paths: Iterable[Path]) -> list[dict[str, Any]]:
    """The lines of files in chronological order, plain or .gz: JSON Lines, or CloudWatch Logs exports.

    Exports put the time before each line.
    """
    return parsed(text for path in paths for text in texts_of(path))


def texts_of(path: Path) -> Iterator[str]:
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt", encoding="utf-8", errors="replace") as file:
        yield from file


def parsed(texts: Iterable[str], fields: Collection[str] = ()) -> list[dict[str, Any]]:
    """The texts that are lines of the prediction log, parsed: the last one of each execution."""
    lines: dict[Any, dict[str, Any]] = {}
    for number, text in enumerate(texts):
        _time, brace, rest = text.partition("{")
        try:
            line = json.loads(brace + rest)
        except ValueError:
            continue
        if isinstance(line, dict) and line.get("message") == MESSAGE and "outcome" in line:
            execution = re.sub(r"-redrive-\d+$", "", line["execution_arn"]) if "execution_arn" in line else number
            lines.pop(execution, None)  # so that the last line takes its own place in time
            lines[execution] = {name: line[name] for name in fields if name in line} if fields else line
    return list(lines.values())


def time_of(line: dict[str, Any]) -> datetime:
    """The time when the line was written."""
    return datetime.strptime(line["timestamp"], TIME_FORMAT)
