"""make review-export: write reviews to a file, to decide them elsewhere or to look at decisions.

make review-export FORMAT=labelstudio OUTPUT=tasks.json     and tasks.xml, the labelling configuration
make review-export FORMAT=csv OUTPUT=reviews.csv STATUS=all
make review-export FORMAT=folders OUTPUT=images             one folder per label, with the images themselves

STATUS is pending (the default), reviewed or all. make review-import reads what was decided. An image that was deleted
or replaced since it was classified is listed and left out; CSV has all.
"""

import argparse
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator
from itertools import chain
from pathlib import Path

from botocore.client import BaseClient
from botocore.config import Config
from botocore.exceptions import ClientError

from functions.predictions import split_labels
from local.command import StackError, UsageError, absolute, console, one_of, report_errors
from local.progress import in_parallel
from local.target import Target, target
from review import exchange
from review.exchange import ExchangeError
from review.table import Review, ReviewTable

FORMATS = ("labelstudio", "csv", "folders")
WORKERS = 10  # as many connections as a client of boto3 keeps
SHOWN = 50  # of what is listed
URL_SECONDS = 7 * 24 * 3600  # the longest that S3 allows; a URL of temporary credentials ends with them
# S3 redirects requests for a new bucket in another region than us-east-1, unless their host names the region.
PRESIGNING = Config(signature_version="s3v4", s3={"addressing_style": "virtual"})


def review_table(found: Target) -> ReviewTable:
    if "ReviewTableName" not in found.outputs:
        raise StackError(f"There is no review table in {found.place}: update it with make deploy")
    return ReviewTable(found.client("dynamodb"), found.outputs["ReviewTableName"])


def with_status(table: ReviewTable, status: str) -> Iterator[Review]:
    statuses = ("pending", "reviewed") if status == "all" else (status,)
    return chain.from_iterable(map(table.with_status, statuses))


def known_labels(found: Target, table: ReviewTable) -> list[str]:
    """The labels that a reviewer can choose: the stack's parameter, or those of all predictions in the table."""
    if labels := split_labels(found.parameter("Labels")):
        return labels
    predicted = (review.predictions for review in with_status(table, "all"))
    return sorted({row["label"] for predictions in predicted for row in predictions})


def listed(title: str, lines: list[str]) -> None:
    """Print the first SHOWN lines below a title; nothing if there are none."""
    if lines:
        console.print(f"{title} ({len(lines):,}):", markup=False)
        for line in lines[:SHOWN]:
            console.print(f"  {line}", markup=False, soft_wrap=True)
        if len(lines) > SHOWN:
            console.print(f"  and {len(lines) - SHOWN:,} more")


def version_of(review: Review) -> dict[str, str]:
    """The request parameter that makes S3 return what was classified, or an error."""
    return {"VersionId": review.s3_version_id} if review.s3_version_id else {"IfMatch": f'"{review.version}"'}


def missing(error: ClientError) -> str:
    """Why S3 does not have the image. Any other error is raised again."""
    code = error.response["Error"]["Code"]
    if code in ("NoSuchKey", "NoSuchVersion", "NoSuchBucket", "404"):
        return "it was deleted"
    if code in ("PreconditionFailed", "412"):
        return "another image has replaced it"
    raise error


def checked(s3: BaseClient, newest: bool) -> Callable[[Review], str]:
    """A function that says why an image is not there, or "". newest: nor behind a newer version of the object."""

    def check(review: Review) -> str:
        object_ = {"Bucket": review.s3_bucket, "Key": review.s3_key}
        try:
            found = s3.head_object(**object_, **({} if newest else version_of(review)))
        except ClientError as error:
            return missing(error)
        if newest and review.version not in (found.get("VersionId"), found["ETag"].strip('"')):
            return "another image has replaced it: URLS=presigned shows the one that was classified"
        return ""

    return check


def write_label_studio(found: Target, reviews: list[Review], labels: list[str], output: Path, presigned: bool) -> int:
    """Write the tasks and, beside them, the labelling configuration."""
    config = exchange.labelling_config(labels)
    s3 = found.client("s3", config=PRESIGNING) if presigned else found.client("s3")
    reasons = in_parallel("Checking the images", checked(s3, not presigned), reviews, len(reviews), WORKERS)
    tasks, left_out = [], []
    for review, reason in zip(reviews, reasons, strict=True):
        if reason:
            left_out.append(f"{review.image} (version {review.version}): {reason}")
            continue
        version = {"VersionId": review.s3_version_id} if review.s3_version_id else {}
        object_ = {"Bucket": review.s3_bucket, "Key": review.s3_key, **version}
        url = s3.generate_presigned_url("get_object", object_, URL_SECONDS) if presigned else review.image
        tasks.append(exchange.task(review, url, labels))
    output.write_text(json.dumps(tasks, indent=1), encoding="utf-8")
    output.with_suffix(".xml").write_text(config, encoding="utf-8")
    listed("Left out", left_out)
    console.print(f"The labelling configuration is {output.with_suffix('.xml')}", markup=False, soft_wrap=True)
    return len(tasks)


def write_folders(found: Target, reviews: list[Review], labels: list[str], output: Path) -> int:
    """Write the images, and an empty folder for each other label. All or nothing appears at `output`."""
    s3 = found.client("s3")
    work = Path(tempfile.mkdtemp(prefix=f".{output.name}.", dir=output.parent))

    def save(review: Review) -> str:
        try:
            image = s3.get_object(Bucket=review.s3_bucket, Key=review.s3_key, **version_of(review))["Body"].read()
        except ClientError as error:
            return missing(error)
        path = work / exchange.folder(review) / exchange.file_name(review)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(image)
        return ""

    try:
        for name in exchange.folders(labels):
            (work / name).mkdir()
        reasons = list(in_parallel("Downloading the images", save, reviews, len(reviews), WORKERS))
        work.chmod(0o755)
        work.rename(output)
    except BaseException:
        shutil.rmtree(work)
        raise
    pairs = zip(reviews, reasons, strict=True)
    listed("Left out", [f"{review.image} (version {review.version}): {reason}" for review, reason in pairs if reason])
    return reasons.count("")


def write_csv(reviews: Iterable[Review], output: Path) -> int:
    """Write a file that appears only when it is complete."""
    part = output.with_name(f".{output.name}.part")
    try:
        number = exchange.write_csv(reviews, part)
        part.rename(output)
    finally:
        part.unlink(missing_ok=True)
    return number


def export(found: Target, options: argparse.Namespace) -> None:
    table, output = review_table(found), Path(options.output)
    reviews = with_status(table, options.status)
    try:
        if options.format == "csv":
            number = write_csv(reviews, output)
        else:
            labels, chosen = known_labels(found, table), list(reviews)
            number = (
                write_folders(found, chosen, labels, output)
                if options.format == "folders"
                else write_label_studio(found, chosen, labels, output, options.urls == "presigned")
            )
    except ExchangeError as error:
        raise StackError(str(error)) from None
    reviews_written = f"{number:,} review{'' if number == 1 else 's'} written"
    console.print(f"{reviews_written} to {output}", markup=False, soft_wrap=True)


def check_options(options: argparse.Namespace) -> None:
    """Complete the options. Raises UsageError."""
    one_of("FORMAT", options.format, FORMATS)
    options.status, options.urls = options.status or "pending", options.urls or "s3"
    one_of("STATUS", options.status, ("pending", "reviewed", "all"))
    one_of("URLS", options.urls, ("s3", "presigned"))
    if options.urls == "presigned" and options.format != "labelstudio":
        raise UsageError(f"URLS=presigned is only for FORMAT=labelstudio: FORMAT={options.format} has no URLs")
    options.output = absolute("OUTPUT", options.output)
    output = Path(options.output)
    if not output.parent.is_dir():
        raise UsageError(f"OUTPUT={options.output} is not in a folder that exists")
    for path in (output, output.with_suffix(".xml")) if options.format == "labelstudio" else (output,):
        if path.exists():  # perhaps with decisions in it
            raise UsageError(f"{path} exists already: choose another OUTPUT")
    if options.format == "labelstudio" and output.suffix != ".json":
        raise UsageError(f"OUTPUT={options.output} does not end in .json")


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--format", default="", help=", ".join(FORMATS))
    parser.add_argument("--output", default="", help="the file, or the folder, to write")
    parser.add_argument("--status", default="", help="pending, reviewed or all")
    parser.add_argument("--urls", default="", help="of Label Studio's images: s3 or presigned")
    parser.add_argument("--stack", default="", help="name of a stack on AWS; by default the local stack")
    return parser.parse_args(arguments)


def main() -> None:
    options = parse()
    with report_errors():
        check_options(options)
        with target(options.stack, share=True) as found:
            export(found, options)


if __name__ == "__main__":
    main()
