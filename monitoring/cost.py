"""What AWS bills for classifying and reviewing images: counts of real runs, at list prices.

benchmarks/usage.json has the counts (benchmarks/usage.py writes it), functions/prices.json the prices. docs/scale.md
says how they were measured, and what is not counted.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
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
EXPRESS_GB = 64 / 1024  # the smallest billed memory of an Express execution

Counts = dict[str, float]


def counted() -> dict[str, Any]:
    return json.loads((ROOT / "benchmarks/usage.json").read_text())


def batches_of(size: int) -> dict[str, Any]:
    return next(run for run in counted()["batches"] if run["batch_size"] == size)


def classification(run: dict[str, Any], images: float) -> Counts:
    """What images use: a batch's execution once, the rest in proportion. Without the endpoint's time."""
    fixed = run["fixed"]
    used = {
        name: (value - fixed.get(name, 0)) * images / run["images"] + fixed.get(name, 0)
        for name, value in run["counts"].items()
    }
    return used | {
        "express_gb_seconds": used.get("express_seconds", 0) * EXPRESS_GB,
        "endpoint_gb": used["endpoint_bytes"] / 1e9,
        "log_gb": used["log_bytes"] / 1e9,
    }


def reviews(reviewed: Mapping[str, float]) -> Counts:
    """What reviews use in addition to the classification. reviewed: images by reason, low_confidence and audit."""
    made = counted()["reviews"]
    used = {
        name: sum(made[reason]["counts"][name] / made[reason]["images"] * images for reason, images in reviewed.items())
        for name in made["audit"]["counts"]
    }
    return used | {"log_gb": used["log_bytes"] / 1e9}


def prices() -> Counts:
    listed = json.loads((ROOT / "functions/prices.json").read_text())
    return {name: price["usd"] for name, price in listed.items() if name != "comment"}


def cost(used: Counts) -> dict[str, float]:
    """USD by part of the bill."""
    usd = prices()
    return {
        part: sum(used.get(name, 0) * usd[price] for name, price in priced.items()) for part, priced in PARTS.items()
    }
