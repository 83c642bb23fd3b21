"""make shadow [STACK=name] [SINCE=7d]: compare a realtime endpoint's model with its shadow model on real requests.

Both models' answers come from the endpoint's data capture, and the labels of the images that people reviewed from the
review table. training/compare.py prints how often the models agree, which labels change and what the shadow model would
accept, and where labels are known, its verdict. It writes report.html and comparison.json to .local/shadow.

AWS documents no identifier that a request and its copy share, so they are joined by the hash of the image. A review
finds its image by the InferenceId that ClassifyImage sends with a single image. The images of batches have none: they
are compared, but without a label.
"""

import argparse
import base64
import hashlib
import json
import os
import shutil
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from botocore.client import BaseClient

from functions.predictions import EndpointResponseError, parse_predictions, split_labels
from functions.review_item import inference_id
from local.command import LOCAL, StackError, console, report_errors, run
from local.registry import download
from local.results import start_of
from local.retrain import VERDICTS
from local.target import Target, target
from review.exchange import folder_name
from review.table import ReviewTable

HOW_TO_DEPLOY = "deploy it with EndpointType=realtime, DataCaptureUrl and ShadowModelDataUrl (docs/models.md)"
MAX_CHANGED = 100  # images without a known label that are stored for the page


@dataclass(frozen=True)
class Variants:
    """An endpoint with a shadow variant. roles: champion and challenger, with their variants' names."""

    endpoint: str
    roles: dict[str, str]
    url: str  # of the captured data
    created: datetime  # the configuration of both variants
    updated: datetime  # when the last update of the endpoint ended: no earlier variant answers since then


@dataclass
class Answers:
    """What a variant answered: {sha256 of the image: (label, confidence)}."""

    answers: dict[str, tuple[str, float]] = field(default_factory=dict)
    inference_ids: dict[str, str] = field(default_factory=dict)  # -> sha256


def variants_of(stack: Target) -> Variants:
    """Raises StackError if the stack's endpoint has no shadow variant."""
    if not stack.parameter("ShadowModelDataUrl"):
        raise StackError(f"The endpoint of {stack.place} has no shadow model: {HOW_TO_DEPLOY}")
    sagemaker, endpoint = stack.client("sagemaker"), f"{stack.name}-realtime"  # as template.yaml names it
    described = sagemaker.describe_endpoint(EndpointName=endpoint)
    config = sagemaker.describe_endpoint_config(EndpointConfigName=described["EndpointConfigName"])
    if not config.get("ShadowProductionVariants"):
        raise StackError(f"The endpoint {endpoint} has no shadow variant yet: its update has not ended, or failed")
    (production,), (shadow,) = config["ProductionVariants"], config["ShadowProductionVariants"]
    return Variants(
        endpoint,
        {"champion": production["VariantName"], "challenger": shadow["VariantName"]},
        config["DataCaptureConfig"]["DestinationS3Uri"].rstrip("/"),
        config["CreationTime"],
        described["LastModifiedTime"],
    )


def events(s3: BaseClient, url: str, start: datetime) -> Iterator[dict[str, Any]]:
    """The captured events below an s3:// URL since this time, in S3's order."""
    bucket, _, prefix = url.removeprefix("s3://").partition("/")
    for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=f"{prefix}/"):
        for row in page.get("Contents", []):
            if row["LastModified"] < start.replace(microsecond=0) or not row["Key"].endswith(".jsonl"):
                continue
            for line in s3.get_object(Bucket=bucket, Key=row["Key"])["Body"].iter_lines(chunk_size=1 << 20):
                event = json.loads(line)
                time = datetime.fromisoformat(event["eventMetadata"]["inferenceTime"])
                if time >= start.replace(microsecond=0):  # the event's time has no fraction
                    yield event


def content(side: dict[str, str]) -> bytes:
    """A captured body."""
    return base64.b64decode(side["data"]) if side["encoding"] == "BASE64" else side["data"].encode()


def exchanges(event: dict[str, Any]) -> list[tuple[bytes, bytes]]:
    """The images of a captured request, each with the part of the response that is about it."""
    request, response = (event["captureData"][side] for side in ("endpointInput", "endpointOutput"))
    if request["observedContentType"].split(";")[0] != "application/jsonlines":
        return [(content(request), content(response))]
    lines = [json.loads(line)["image"] for line in content(request).splitlines()]
    return list(zip(map(base64.b64decode, lines), content(response).splitlines(), strict=True))


def collect(captured: Iterable[dict[str, Any]], labels: list[str]) -> Answers:
    """What a variant answered; the same image has one answer. labels: the stack's parameter Labels."""
    found = Answers()
    for event in captured:
        for image, response in exchanges(event):
            try:
                best = parse_predictions(response, labels)[0]
            except EndpointResponseError:  # a batch's image that the model rejects
                continue
            digest = hashlib.sha256(image).hexdigest()
            found.answers[digest] = best["label"], best["probability"]
            if name := event["eventMetadata"].get("inferenceId"):
                found.inference_ids[name] = digest
    return found


def reviewed_labels(table: ReviewTable, inference_ids: dict[str, str]) -> dict[str, str]:
    """The labels that people gave to these images, by SHA-256; not those of an image with different ones."""
    labels: dict[str, set[str]] = defaultdict(set)
    for review in table.reviewed():
        request = {"s3_bucket": review.s3_bucket, "s3_key": review.s3_key, "s3_version_id": review.version}
        digest = inference_ids.get(inference_id(request))
        if digest and review.reviewed_label:
            labels[digest].add(review.reviewed_label)
    return {digest: given.pop() for digest, given in labels.items() if len(given) == 1}


def metrics(cloudwatch: BaseClient, endpoint: str, variant: str, start: datetime) -> dict[str, float | None]:
    """The variant's requests, errors, and the model's mean milliseconds."""
    now = datetime.now(UTC)
    period = 60 if (now - start).days < 1 else 3600  # at most 1,440 rows
    dimensions = [{"Name": "EndpointName", "Value": endpoint}, {"Name": "VariantName", "Value": variant}]

    def total(name: str, statistic: str = "Sum") -> float:
        rows = cloudwatch.get_metric_statistics(
            Namespace="AWS/SageMaker", MetricName=name, Dimensions=dimensions, StartTime=start, EndTime=now,
            Period=period, Statistics=[statistic],
        )["Datapoints"]  # fmt: skip
        return sum(row[statistic] for row in rows)

    answered = total("ModelLatency", "SampleCount")
    return {
        "requests": total("Invocations"),
        "errors": total("Invocation4XXErrors") + total("Invocation5XXErrors"),
        "milliseconds": total("ModelLatency") / answered / 1000 if answered else None,
    }


def write(folder: Path, about: dict[str, Any], found: dict[str, Answers], labels: dict[str, str]) -> dict[str, Path]:
    """Write captured.json for training/compare.py; return the files of the images that it needs, by SHA-256.

    These are the images with a label, and others whose answer changes.
    """
    champion, challenger = found["champion"].answers, found["challenger"].answers
    rows, files = {}, {}
    for digest in sorted(champion.keys() & challenger.keys()):
        if digest in labels:
            files[digest] = folder / "images" / folder_name(labels[digest]) / digest
        elif champion[digest][0] != challenger[digest][0] and len(files) < len(labels) + MAX_CHANGED:
            files[digest] = folder / "changed" / digest
        file = str(files[digest].relative_to(folder)) if digest in files else None
        rows[digest] = {"champion": champion[digest], "challenger": challenger[digest], "file": file}
    only = {
        "champion": len(champion.keys() - challenger.keys()),
        "challenger": len(challenger.keys() - champion.keys()),
    }
    (folder / "captured.json").write_text(json.dumps({**about, "only": only, "answers": rows}), encoding="utf-8")
    return files


def write_images(captured: Iterable[dict[str, Any]], files: dict[str, Path]) -> None:
    for image in (image for event in captured for image, _ in exchanges(event)):
        if file := files.get(hashlib.sha256(image).hexdigest()):
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(image)


def gather(stack: Target, since: datetime | None, folder: Path) -> list[str]:
    """Write all that the comparison needs to the folder; return the options of training/compare.py."""
    variants, s3 = variants_of(stack), stack.client("s3")
    start = max(since, variants.created) if since else variants.updated
    labels = split_labels(stack.parameter("Labels"))

    def captured(role: str) -> Iterator[dict[str, Any]]:
        return events(s3, f"{variants.url}/{variants.endpoint}/{variants.roles[role]}", start)

    found = {role: collect(captured(role), labels) for role in variants.roles}
    if not found["champion"].answers.keys() & found["challenger"].answers.keys():
        raise StackError(
            f"{variants.url} has no image that both models answered since {start:%Y-%m-%d %H:%M}. SageMaker writes "
            "captured data minutes later: classify images, or wait"
        )
    table = ReviewTable(stack.client("dynamodb"), stack.outputs["ReviewTableName"])
    reviewed = reviewed_labels(table, found["champion"].inference_ids)
    about: dict[str, Any] = {"place": stack.place, "since": start.astimezone().isoformat(timespec="seconds")}
    for role, name in variants.roles.items():
        about[role] = metrics(stack.client("cloudwatch"), variants.endpoint, name, start)
    shutil.rmtree(folder, ignore_errors=True)  # of an earlier comparison
    folder.mkdir(parents=True)
    write_images(captured("champion"), write(folder, about, found, reviewed))
    models = [
        download(s3, stack.parameter(parameter), folder / f"{role}.tar.gz")
        for role, parameter in {"champion": "ModelDataUrl", "challenger": "ShadowModelDataUrl"}.items()
    ]
    data = ["--data", folder / "images"] if (folder / "images").exists() else []
    options = ["--captured", folder / "captured.json", "--output", folder, "--threshold", stack.parameter("Threshold")]
    return [*map(str, [*models, *data, *options])]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--since", default="", help="a duration (30m, 12h, 7d, 2w) or a date [since the last update]")
    parser.add_argument("--stack", default="", help="name of a stack on AWS; by default the local stack")
    parser.add_argument("--output", type=Path, default=LOCAL / "shadow")
    options = parser.parse_args()
    with report_errors():
        since = start_of(options.since)
        with target(options.stack, share=True) as stack:
            arguments = gather(stack, since, options.output.resolve())
        run([sys.executable, "training/compare.py", *arguments], os.environ, VERDICTS)
        console.print("Reviewed images favour the shadow model if they were reviewed because the other was unsure.")


if __name__ == "__main__":
    main()
