"""make accuracy [SINCE=30d] [STACK=name]: how accurate the model is in production, by its reviewers.

The accuracy of accepted images from the audits, of all images from the audits and those below the threshold, and by
predicted label, each with its interval (monitoring/accuracy.py). All images since SINCE count, whichever model
classified them: the review table names the endpoint and its variant, not the model. Also writes
.local/accuracy/report.html, with the accepted images that reviewers found wrong.
"""

import argparse
import os
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path

from botocore.client import BaseClient
from botocore.exceptions import ClientError
from rich.markup import escape
from rich.table import Table

from local.command import LOCAL, StackError, console, report_errors
from local.report import accuracy, record
from local.report.accuracy import MAX_MISTAKES, Figures
from local.report.evaluation import interval, share
from local.results import start_of
from local.target import target
from monitoring.accuracy import MIN_REVIEWED, Estimate
from monitoring.replay import Image
from review.images import ImageError, get_version
from review.table import Review, ReviewTable


def reviews_since(table: ReviewTable, since: datetime | None) -> list[Review]:
    """Pending and reviewed items that were created since this time."""
    start = since.astimezone(UTC).isoformat(timespec="milliseconds") if since else ""
    # The pending ones first: what is decided meanwhile then appears twice, and otherwise not at all.
    found = {
        (review.image, review.version): review
        for review in chain(table.pending(), table.reviewed())
        if review.created_at >= start
    }
    return list(found.values())


def thumbnail(s3: BaseClient, image: Review | Image) -> str | None:
    """The image in the version that was classified, as a data: URL; None if it is gone or cannot be read."""
    try:
        response = get_version(s3, image.s3_bucket, image.s3_key, image.s3_version_id, image.version)
        data = response["Body"].read()
    except (ImageError, ClientError):
        return None
    return record.thumbnail(data)


def show(made: Figures) -> None:
    """Print the estimates, then what was reviewed and what is missing."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("")
    for name in ("right", "accuracy", "95% interval"):
        table.add_column(name, justify="right")
    table.add_column("")

    def add(name: str, each: Estimate | None) -> None:
        if each:
            few = "few" if each.reviewed < MIN_REVIEWED else ""
            right, bounds = f"{each.right:,} of {each.reviewed:,}", interval((each.low, each.high))
            table.add_row(escape(name), right, share(each.estimate), bounds, few)

    add("accepted images", made.accepted)
    add("all images", made.overall)
    for label, each in made.labels.items():
        add(f"  accepted as {label}", each)
    if table.row_count:
        console.print(table)
        console.print()
    for sentence in accuracy.sentences(made):
        console.print(sentence, markup=False, soft_wrap=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--since", default="", help="a duration (30m, 12h, 7d, 2w) or a date; all images without it")
    parser.add_argument("--stack", default="", help="name of a stack on AWS; by default the local stack")
    parser.add_argument("--output", type=Path, default=LOCAL / "accuracy/report.html")
    options = parser.parse_args()
    with report_errors():
        since = start_of(options.since)
        with target(options.stack, share=True) as stack:
            if "ReviewTableName" not in stack.outputs:
                raise StackError(f"There is no review table in {stack.place}: deploy the current template first")
            reviews = reviews_since(ReviewTable(stack.client("dynamodb"), stack.outputs["ReviewTableName"]), since)
            made, s3 = accuracy.figures(reviews), stack.client("s3")
            thumbnails = [thumbnail(s3, review) for review in made.mistakes[:MAX_MISTAKES]]
        about = stack.place + (f", images since {since:%Y-%m-%d %H:%M}" if since else "")
        html = accuracy.render(made, about, thumbnails)
        options.output.parent.mkdir(parents=True, exist_ok=True)
        options.output.write_text(html, encoding="utf-8", errors="backslashreplace")
        show(made)
        console.print(f"Wrote {os.path.relpath(options.output)}", markup=False, soft_wrap=True)


if __name__ == "__main__":
    main()
