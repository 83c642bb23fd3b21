"""The tables of docs/scale.md: cost and duration of a million and of a hundred million images.

    .venv/bin/python -m benchmarks.scale

From a measured batch of 50 kB photographs (benchmarks/batch.json, printed by benchmarks/batch_function.py), the list
prices in functions/prices.json, and AWS's documented quotas.
"""

import json
import math
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
MILLION = 1_000_000
BATCH_SIZE = 500
ENDPOINT = 1801  # images a second of two vCPUs in batches of JSON Lines: benchmarks/README.md
MEMORY = 1769 / 1024  # GB of ClassifyBatch
# https://docs.aws.amazon.com/step-functions/latest/dg/service-quotas.html and each service's own
CHILDREN_PER_SECOND = 1000  # Express executions that a Map Run starts
GETS_PER_SECOND = 5500  # per prefix of a bucket
KEYS_PER_LIST = 1000


def prices() -> dict[str, float]:
    table = json.loads((ROOT / "functions/prices.json").read_text())
    return {name: price["usd"] for name, price in table.items() if name != "comment"}


def measured() -> dict[str, float]:
    """Per image of 50 kB: bytes to and from the endpoint, Lambda GB-seconds, seconds of the endpoint's vCPUs.

    Seconds are CPU time: a function of one vCPU reads ahead and prepares the next request while the endpoint works, so
    it is busy, not waiting.
    """
    counted = json.loads((ROOT / "benchmarks/batch.json").read_text())
    return {
        "endpoint_bytes": counted["endpoint_bytes"],
        "lambda_gb_seconds": counted["function_ms"] / 1000 * MEMORY,
        "endpoint_seconds": 2 / ENDPOINT,
    }


def batch_cost(batch_size: int, endpoint: str) -> dict[str, float]:
    """USD for a million images in batches."""
    usd, image = prices(), measured()
    batches = MILLION / batch_size
    gb_seconds = MILLION * image["lambda_gb_seconds"]
    compute = {
        "realtime": MILLION / ENDPOINT / 3600 * usd["sagemaker_c6i_large_hour"],
        "serverless": MILLION * image["endpoint_seconds"] * usd["sagemaker_serverless_2gb_second"],
    }[endpoint]
    return {
        "Step Functions": batches * (usd["step_functions_transition"] + usd["express_request"])
        + gb_seconds / MEMORY * 64 / 1024 * usd["express_gb_second"],
        "Lambda": batches * usd["lambda_request"] + gb_seconds * usd["lambda_arm_gb_second"],
        "endpoint": MILLION * image["endpoint_bytes"] / 1e9 * usd["sagemaker_data_gb"] + compute,
        "S3": MILLION * usd["s3_get"] + batches * usd["s3_put"] + MILLION / KEYS_PER_LIST * usd["s3_list"],
        "events and logs": batches * 2000 / 1e9 * usd["logs_gb"],  # about 2 kB a batch
    }


def single_cost() -> dict[str, float]:
    """USD for a million executions of one image each: docs/operations.md counts the same for a thousand."""
    usd = prices()
    return {
        "Step Functions": MILLION * 5 * usd["step_functions_transition"],
        "Lambda": MILLION * (4 * usd["lambda_request"] + 0.3 * usd["lambda_arm_gb_second"]),
        "endpoint": MILLION * 51_000 / 1e9 * usd["sagemaker_data_gb"]
        + MILLION / ENDPOINT / 3600 * usd["sagemaker_c6i_large_hour"],
        "S3": MILLION * usd["s3_get"],
        "events and logs": MILLION * (usd["eventbridge_event"] + 13_000 / 1e9 * usd["logs_gb"]),
    }


def transform_cost() -> dict[str, float]:
    """USD for SageMaker Batch Transform: an image a request, an object of results an image."""
    usd = prices()
    return {
        "Step Functions": 0,
        "Lambda": 0,
        "endpoint": MILLION / 600 / 3600 * usd["batch_transform_c6i_large_hour"],
        "S3": MILLION * (usd["s3_get"] + usd["s3_put"]) + MILLION / KEYS_PER_LIST * usd["s3_list"],
        "events and logs": 0,
    }


def table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def cost_table() -> str:
    ways = {
        "batches of 500, realtime endpoint, fully used": batch_cost(500, "realtime"),
        "batches of 200 (the default), realtime": batch_cost(200, "realtime"),
        "batches of 500, serverless endpoint of 2 GB": batch_cost(500, "serverless"),
        "one execution per image, realtime": single_cost(),
        "SageMaker Batch Transform": transform_cost(),
    }
    parts = list(single_cost())
    rows = [
        [name, *(f"{cost[part]:.2f}" for part in parts), f"**{sum(cost.values()):.2f}**"] for name, cost in ways.items()
    ]
    return table(["a million 50 kB images, USD", *parts, "total"], rows)


def duration(seconds: float) -> str:
    if seconds < 120:
        return f"{math.ceil(seconds)} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def duration_table() -> str:
    """How long each limit alone lets a batch take."""
    per_lambda = MEMORY / measured()["lambda_gb_seconds"]
    rates = {
        "Map Run: 1,000 Express children started a second, batches of 500": CHILDREN_PER_SECOND * BATCH_SIZE,
        "S3: 5,500 GET a second on one prefix": GETS_PER_SECOND,
        "Lambda: 8 at a time (the default `max_concurrency`)": 8 * per_lambda,
        "Lambda: 10 at a time (a new account)": 10 * per_lambda,
        "Lambda: 1,000 at a time (the usual quota)": 1000 * per_lambda,
        "endpoint: one `ml.c6i.large`": ENDPOINT,
        "endpoint: ten `ml.c6i.large`": 10 * ENDPOINT,
    }
    rows = [
        [name, f"{rate:,.0f}", duration(MILLION / rate), duration(100 * MILLION / rate)] for name, rate in rates.items()
    ]
    return table(["limit", "images a second", "a million", "a hundred million"], rows)


if __name__ == "__main__":
    print(cost_table(), duration_table(), sep="\n\n")
