"""The tables of docs/scale.md: cost and duration of a million and of a hundred million images.

    .venv/bin/python -m benchmarks.scale

From what real runs on the local stack used (benchmarks/usage.json, written by benchmarks/usage.py), the list prices in
functions/prices.json, and AWS's documented quotas.
"""

import math
from typing import Any

from monitoring import cost
from monitoring.cost import PARTS, Counts, batches_of, counted

MILLION = 1_000_000
ENDPOINT_VCPUS = 2  # of ml.c6i.large, and of a serverless endpoint's 2 GB
FOR_REVIEW, AUDITED = 0.05, 0.02  # of all images, and of those accepted (AuditRate)
# https://docs.aws.amazon.com/step-functions/latest/dg/service-quotas.html and each service's own
CHILDREN_PER_SECOND = 1000  # Express executions that a Map Run starts
GETS_PER_SECOND = 5500  # per prefix of a bucket


def million(run: dict[str, Any]) -> Counts:
    return cost.classification(run, MILLION)


def hours(used: Counts) -> float:
    """Of an instance of the endpoint that is never idle."""
    return used["endpoint_cpu_seconds"] / ENDPOINT_VCPUS / 3600


def realtime(run: dict[str, Any]) -> Counts:
    used = million(run)
    return used | {"realtime_hours": hours(used)}


def serverless(run: dict[str, Any]) -> Counts:
    used = million(run)
    return used | {"serverless_seconds": used["endpoint_seconds"]}


def reviews() -> Counts:
    """What the reviews of a million images cost in addition to their classification."""
    return cost.reviews({"low_confidence": FOR_REVIEW * MILLION, "audit": AUDITED * (1 - FOR_REVIEW) * MILLION})


def transform() -> Counts:
    """SageMaker Batch Transform, which accepts one image per request and writes an object for each."""
    return {
        "transform_hours": hours(million(counted()["single"])),
        "s3_get": MILLION,
        "s3_put": MILLION,
        "s3_list": MILLION / 1000,
    }


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cost_table() -> str:
    ways = {
        "batches of 500, realtime endpoint, never idle": realtime(batches_of(500)),
        "batches of 300 (the default), realtime": realtime(batches_of(300)),
        "batches of 500, serverless endpoint of 2 GB": serverless(batches_of(500)),
        "one execution per image, realtime": realtime(counted()["single"]),
        "SageMaker Batch Transform": transform(),
        "in addition: reviews of 5 %, audits of 2 %": reviews(),
    }
    rows = [
        [name, *(f"{usd:.2f}" for usd in parts.values()), f"**{sum(parts.values()):.2f}**"]
        for name, parts in ((name, cost.cost(used)) for name, used in ways.items())
    ]
    return table(["a million 50 kB images, USD", *PARTS, "total"], rows)


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def duration_table() -> str:
    """How long each limit alone lets a batch take."""
    used = million(batches_of(500))
    one_lambda = MILLION / (used["lambda_gb_seconds"] / (1769 / 1024))
    one_instance = MILLION * ENDPOINT_VCPUS / used["endpoint_cpu_seconds"]
    rates = {
        "Map Run: 1,000 Express children started a second, batches of 500": CHILDREN_PER_SECOND * 500,
        "S3: 5,500 GET a second on one prefix": GETS_PER_SECOND,
        "Lambda: 8 at a time (the default `max_concurrency`)": 8 * one_lambda,
        "Lambda: 10 at a time (a new account)": 10 * one_lambda,
        "Lambda: 1,000 at a time (the usual quota)": 1000 * one_lambda,
        "endpoint: one `ml.c6i.large`": one_instance,
        "endpoint: ten `ml.c6i.large`": 10 * one_instance,
    }
    rows = [
        [name, f"{rate:,.0f}", duration(MILLION / rate), duration(100 * MILLION / rate)] for name, rate in rates.items()
    ]
    return table(["limit", "images a second", "a million", "a hundred million"], rows)


if __name__ == "__main__":
    print(cost_table(), duration_table(), sep="\n\n")
