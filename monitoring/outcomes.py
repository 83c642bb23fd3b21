"""Every image's outcome, from single executions (the prediction log) and from batches (the results bucket), as rows.

    rows = outcomes.from_batches(boto3.client("s3"), outputs["ResultsBucketName"])
    rows = outcomes.from_executions(boto3.client("logs"), outputs["PredictionLogGroupName"], since=last_week)

The same calls work on AWS and on the local stack. A row has the keys COLUMNS; what an image does not have is None.
executions_lines and batches_lines have all that was written of an image, and `time`.
"""

import csv
import json
import tempfile
from collections.abc import Collection, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import duckdb
from botocore.client import BaseClient

from monitoring import prediction_log

COLUMNS = {  # and their types in Parquet
    "time": "TIMESTAMPTZ",
    "outcome": "VARCHAR",
    "s3_bucket": "VARCHAR",
    "s3_key": "VARCHAR",
    "s3_version_id": "VARCHAR",
    "label": "VARCHAR",
    "confidence": "DOUBLE",
    "threshold": "DOUBLE",
    "error": "VARCHAR",
    "cause": "VARCHAR",
    "execution_arn": "VARCHAR",
}
READERS = 16
FOLDER = "results/"  # of the results bucket

Row = dict[str, Any]
Line = dict[str, Any]


def from_executions(logs: BaseClient, group: str, since: datetime | None = None) -> Iterator[Row]:
    """A row for each line of the prediction log, from `since`."""
    return map(row, executions_lines(logs, group, since))


def from_batches(s3: BaseClient, bucket: str, since: datetime | None = None, execution: str = "") -> Iterator[Row]:
    """A row for each line of the batches' results, from `since`, of one execution if its name is given."""
    return map(row, batches_lines(s3, bucket, since, execution))


def executions_lines(
    logs: BaseClient, group: str, since: datetime | None = None, fields: Collection[str] = ()
) -> Iterator[Line]:
    """The lines of the prediction log, from `since`; only these fields, if given, and the time."""
    for line in prediction_log.from_log_group(logs, group, since, {*fields, "timestamp"} if fields else ()):
        yield line | {"time": prediction_log.time_of(line).astimezone(UTC).isoformat(timespec="milliseconds")}


def batches_lines(s3: BaseClient, bucket: str, since: datetime | None = None, execution: str = "") -> Iterator[Line]:
    """The lines of the batches' results, from `since`, of one execution if its name is given."""

    def read(key: str) -> list[Line]:
        text = s3.get_object(Bucket=bucket, Key=key)["Body"].read().decode()
        return [json.loads(line) for line in text.splitlines()]

    prefix = f"{FOLDER}execution={execution}/" if execution else FOLDER
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
    keys = [
        found["Key"]
        for page in pages
        for found in page.get("Contents", [])
        if not since or found["LastModified"] >= since
    ]
    with ThreadPoolExecutor(READERS) as pool:
        for start in range(0, len(keys), READERS):  # so that memory stays bounded
            for lines in pool.map(read, keys[start : start + READERS]):
                yield from lines


def row(line: Line) -> Row:
    return {name: line.get(name) for name in COLUMNS}


def matching(rows: Iterable[Row], **wanted: str) -> Iterator[Row]:
    """The rows with these values; an empty string matches every value."""
    for each in rows:
        if all(each[name] == value for name, value in wanted.items() if value):
            yield each


def write(rows: Iterable[Row], path: Path) -> int:
    """Write the rows as CSV or Parquet, by the path's suffix; return their number."""
    return write_parquet(rows, path) if path.suffix == ".parquet" else write_csv(rows, path)


def write_csv(rows: Iterable[Row], path: Path) -> int:
    number = 0
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(COLUMNS))
        writer.writeheader()
        for number, each in enumerate(rows, 1):  # noqa: B007
            writer.writerow(each)
    return number


def write_parquet(rows: Iterable[Row], path: Path) -> int:
    number = 0
    with tempfile.TemporaryDirectory() as directory:
        source = Path(directory, "rows.jsonl")
        with source.open("w") as file:
            for number, each in enumerate(rows, 1):  # noqa: B007
                file.write(json.dumps(each) + "\n")
        with duckdb.connect() as database:
            database.read_json(str(source), format="newline_delimited", columns=COLUMNS).write_parquet(str(path))
    return number
