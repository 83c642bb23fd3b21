"""The tables of docs/scale.md: cost and duration of a million and of a hundred million images.

    .venv/bin/python -m benchmarks.scale

From what real runs on the local stack used (benchmarks/usage.json, written by benchmarks/usage.py), the list prices in
functions/prices.json, and AWS's documented quotas.
"""

import json
import math
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
MILLION = 1_000_000
ENDPOINT_VCPUS = 2  # of ml.c6i.large, and of a serverless endpoint's 2 GB
FOR_REVIEW, AUDITED = 0.05, 0.02  # of all images, and of those accepted (AuditRate)
EXPRESS_GB = 64 / 1024  # the smallest billed memory of an Express execution
# https://docs.aws.amazon.com/step-functions/latest/dg/service-quotas.html and each service's own
CHILDREN_PER_SECOND = 1000  # Express executions that a Map Run starts
GETS_PER_SECOND = 5500  # per prefix of a bucket
PARTS = {
    "Step Functions": {
        "transitions": "step_functions_transition",
        "express_requests": "express_request",
        "express_gb_seconds": "express_gb_second",
    },
    "Lambda": {"lambda_requests": "lambda_request", "lambda_gb_seconds": "lambda_arm_gb_second"},
    "endpoint": {
        "endpoint_gb": "sagemaker_data_gb",
        "realtime_hours": "sagemaker_c6i_large_hour",
        "serverless_seconds": "sagemaker_serverless_2gb_second",
        "transform_hours": "batch_transform_c6i_large_hour",
    },
    "S3": {"s3_get": "s3_get", "s3_put": "s3_put", "s3_list": "s3_list"},
    "events, logs, claims": {"events": "eventbridge_event", "log_gb": "logs_gb", "dynamodb_writes": "dynamodb_write"},
}

Counts = dict[str, float]


def counted() -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks/usage.json").read_text())


def batches_of(size: int) -> dict[str, Any]:
    return next(run for run in counted()["batches"] if run["batch_size"] == size)


def million(run: dict[str, Any]) -> Counts:
    """What a million images use: a batch's execution once, the rest in proportion to the images."""
    fixed = run["fixed"]
    used = {
        name: (value - fixed.get(name, 0)) * MILLION / run["images"] + fixed.get(name, 0)
        for name, value in run["counts"].items()
    }
    return used | {
        "express_gb_seconds": used.get("express_seconds", 0) * EXPRESS_GB,
        "endpoint_gb": used["endpoint_bytes"] / 1e9,
        "log_gb": used["log_bytes"] / 1e9,
    }


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
    made = counted()["reviews"]
    reviewed = {"low_confidence": FOR_REVIEW * MILLION, "audit": AUDITED * (1 - FOR_REVIEW) * MILLION}
    used = {
        name: sum(made[reason]["counts"][name] / made[reason]["images"] * images for reason, images in reviewed.items())
        for name in made["audit"]["counts"]
    }
    return used | {"log_gb": used["log_bytes"] / 1e9}


def transform() -> Counts:
    """SageMaker Batch Transform, which accepts one image per request and writes an object for each."""
    return {
        "transform_hours": hours(million(counted()["single"])),
        "s3_get": MILLION,
        "s3_put": MILLION,
        "s3_list": MILLION / 1000,
    }


def prices() -> Counts:
    listed = json.loads((ROOT / "functions/prices.json").read_text())
    return {name: price["usd"] for name, price in listed.items() if name != "comment"}


def cost(used: Counts) -> dict[str, float]:
    """USD by part of the bill."""
    usd = prices()
    return {
        part: sum(used.get(name, 0) * usd[price] for name, price in priced.items()) for part, priced in PARTS.items()
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
        [name, *(f"{usd:.2f}" for usd in cost(used).values()), f"**{sum(cost(used).values()):.2f}**"]
        for name, used in ways.items()
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
