"""make results: the outcomes of all images, single executions' and batches', as a table, CSV or Parquet.

make results SINCE=7d OUTCOME=accepted OUTPUT=accepted.csv
make results EXECUTION=batch-20261126-020000 OUTCOME=error
"""

import argparse
import re
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import chain, islice
from pathlib import Path

from rich.markup import escape
from rich.table import Table

from local.command import UsageError, console, report_errors
from local.target import Target, target
from monitoring import outcomes

SHOWN = 20
UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def start_of(since: str) -> datetime | None:
    """The time that SINCE names: 7d, 12h, or a date, local unless it ends in UTC, Z or an offset; None without one."""
    if not since:
        return None
    try:
        if match := re.fullmatch(r"(\d+)([mhdw])", since):
            return datetime.now(UTC) - timedelta(**{UNITS[match[2]]: int(match[1])})
        utc = re.fullmatch("(.+?) ?(UTC|Z)", since)
        return datetime.fromisoformat(utc[1]).replace(tzinfo=UTC) if utc else datetime.fromisoformat(since).astimezone()
    except (ValueError, OverflowError):
        raise UsageError(
            f"SINCE={since} is neither a duration (30m, 12h, 7d, 2w) nor a date (2026-11-26 or 2026-11-26 14:05 UTC)"
        ) from None


def rows(found: Target, options: argparse.Namespace, since: datetime | None) -> Iterator[outcomes.Row]:
    """The rows that the options select; those of a batch only, if EXECUTION names one."""
    batches = outcomes.from_batches(
        found.client("s3"), found.outputs["ResultsBucketName"], since, options.execution.rpartition(":")[2]
    )
    if options.execution:
        return outcomes.matching(batches, outcome=options.outcome, label=options.label)
    single = outcomes.from_executions(found.client("logs"), found.outputs["PredictionLogGroupName"], since)
    return outcomes.matching(chain(single, batches), outcome=options.outcome, label=options.label)


def show(selected: Iterator[outcomes.Row]) -> None:
    """Print the first rows, and how many there are of each outcome."""
    first = list(islice(selected, SHOWN))
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("time", "outcome", "s3_key", "label", "confidence", "error"):
        table.add_column(name, justify="right" if name == "confidence" else "left", overflow="fold")
    for row in first:
        confidence = "" if row["confidence"] is None else f"{row['confidence']:.3f}"
        texts = [str(row["time"])[:19], row["outcome"], row["s3_key"] or "", row["label"] or ""]
        table.add_row(*map(escape, texts), confidence, escape(row["error"] or ""))
    counts = Counter(row["outcome"] for row in chain(first, selected))
    if first:
        console.print(table)
    total = counts.total()
    more = f"; the first {SHOWN} are shown, OUTPUT=file.csv or file.parquet writes all" if total > SHOWN else ""
    listed = ", ".join(f"{number:,} {outcome}" for outcome, number in sorted(counts.items()))
    console.print(f"\n{total:,} images{': ' if listed else ''}{listed}{more}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--since", default="", help="a duration (30m, 12h, 7d, 2w) or a date")
    parser.add_argument("--outcome", default="", choices=["", "accepted", "review", "error"])
    parser.add_argument("--label", default="")
    parser.add_argument("--execution", default="", help="name or ARN of a batch's execution")
    parser.add_argument("--output", default="", help="file to write: .csv or .parquet")
    parser.add_argument("--stack", default="", help="name of a stack on AWS; by default the local stack")
    options = parser.parse_args()
    with report_errors():
        if options.output and Path(options.output).suffix not in (".csv", ".parquet"):
            raise UsageError(f"OUTPUT={options.output} ends neither in .csv nor in .parquet")
        if not Path(options.output).parent.is_dir():
            raise UsageError(f"OUTPUT={options.output} is in a folder that does not exist")
        since = start_of(options.since)
        with target(options.stack, share=True) as found:
            selected = rows(found, options, since)
            if not options.output:
                return show(selected)
            number = outcomes.write(selected, Path(options.output))
            console.print(f"{number:,} images written to {options.output}", markup=False)


if __name__ == "__main__":
    main()
