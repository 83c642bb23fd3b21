"""SummariseBatch: the Map Run's results -> the batch's summary, which is the execution's output.

in   execution_arn, started (the execution's start), map_run: the Map state's result,
     results: {bucket, prefix, database, table}
out  {images, accepted, review, error, errors, skipped, failed_items, mean_confidence, seconds, estimated_cost_usd, ...}

Children that failed and were tolerated have no results: their images get lines with the child's error, and are listed
in retries/, which is a source for another batch.
"""

import json
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aws_lambda_powertools import Logger
from aws_lambda_powertools.utilities.typing import LambdaContext
from botocore.config import Config
from botocore.session import get_session

import prediction_log
from batch_source import names_an_image, request_for
from contract import SUMMARISE_BATCH, validator

SUMMED = ("items", "images", "skipped", "accepted", "review", "error", "confidence")
SUMMED_USAGE = ("endpoint_requests", "endpoint_bytes", "endpoint_ms", "lambda_gb_seconds")
PRICES = json.loads(Path(__file__).with_name("prices.json").read_text())
TRANSITIONS = 9  # of the parent, however many children it has
EXPRESS_GB = 64 / 1024  # the smallest billed memory of an Express execution

logger = Logger()
retries = {"mode": "standard", "total_max_attempts": 5}
s3 = get_session().create_client("s3", config=Config(connect_timeout=3, read_timeout=20, retries=retries))
glue = get_session().create_client("glue", config=Config(connect_timeout=3, read_timeout=20, retries=retries))
validated = validator(SUMMARISE_BATCH)


def records(bucket: str, files: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The records in the ResultWriter's files of JSON Lines."""
    for file in files:
        for line in s3.get_object(Bucket=bucket, Key=file["Key"])["Body"].iter_lines():
            yield json.loads(line)


def add_up(outputs: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """The sums of ClassifyBatch's outputs, each child counted once."""
    children: set[str] = set()
    sums: Counter[str] = Counter(dict.fromkeys(SUMMED + SUMMED_USAGE, 0))
    errors: Counter[str] = Counter()
    for output in outputs:
        if output["batch"] not in children:
            children.add(output["batch"])
            sums.update({name: output.get(name, 0) for name in SUMMED + SUMMED_USAGE})
            errors.update(output["errors"])
    return {"children": len(children), **sums, "errors": dict(errors)}


def lines_of_failed(child: dict[str, Any]) -> list[dict[str, Any]]:
    """The lines for the images of a child that failed, with its error."""
    child_input = json.loads(child["Input"])
    batch = child_input["BatchInput"]
    requests = [request_for(item, batch) for item in child_input["Items"] if names_an_image(item)]
    error, cause = child.get("Error") or child["Status"], child.get("Cause") or ""
    time = {"time": datetime.now(UTC).isoformat(timespec="milliseconds")}
    return [prediction_log.failed(request, error, cause) | time for request in requests]


def put_lines(bucket: str, key: str, lines: list[dict[str, Any]]) -> None:
    s3.put_object(Bucket=bucket, Key=key, Body="".join(f"{json.dumps(line)}\n" for line in lines).encode())


def write_failed(results: dict[str, str], name: str, children: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """Write the lines of the failed children, and the list of their images as a source for another batch."""
    errors: Counter[str] = Counter()
    sources = []
    failed = items = 0
    for child in children:
        lines = lines_of_failed(child)
        put_lines(results["bucket"], f"{results['prefix']}{child['Name']}.jsonl", lines)
        errors.update(line["error"] for line in lines)
        sources += [{key: line[key] for key in prediction_log.OBJECT[:3] if key in line} for line in lines]
        failed, items = failed + 1, items + len(json.loads(child["Input"])["Items"])
    if not failed:
        return {"children": 0, "items": 0, "images": 0, "errors": {}}
    key = f"retries/{name}.jsonl"
    put_lines(results["bucket"], key, sources)
    retry = {"s3_bucket": results["bucket"], "s3_key": key}
    return {"children": failed, "items": items, "images": len(sources), "errors": dict(errors), "retry": retry}


def cost(sums: dict[str, Any], failed: dict[str, Any]) -> dict[str, float]:
    """An estimate in USD from list prices, without the endpoint's own time, logs and failed attempts."""
    children = sums["children"] + failed["children"]
    usd = {name: price["usd"] for name, price in PRICES.items() if name != "comment"}
    seconds = sums["lambda_gb_seconds"]  # an Express execution waits for its function, of at least 1 GB
    parts = {
        "step_functions": (children + TRANSITIONS) * usd["step_functions_transition"]
        + children * usd["express_request"]
        + seconds * EXPRESS_GB * usd["express_gb_second"],
        "lambda": (children + 2) * usd["lambda_request"] + seconds * usd["lambda_arm_gb_second"],
        "s3": sums["images"] * usd["s3_get"] + children * usd["s3_put"] + sums["items"] / 1000 * usd["s3_list"],
        "endpoint_data": sums["endpoint_bytes"] / 1e9 * usd["sagemaker_data_gb"],
    }
    return {name: round(value, 6) for name, value in {**parts, "total": sum(parts.values())}.items()}


def summarise(sums: dict[str, Any], failed: dict[str, Any]) -> dict[str, Any]:
    images = sums["images"] + failed["images"]
    classified = sums["accepted"] + sums["review"]
    summary = {
        "items": sums["items"] + failed["items"],
        "images": images,
        "skipped": sums["items"] + failed["items"] - images,
        "accepted": sums["accepted"],
        "review": sums["review"],
        "error": sums["error"] + failed["images"],
        "errors": dict(Counter(sums["errors"]) + Counter(failed["errors"])),
        "mean_confidence": round(sums["confidence"] / classified, 4) if classified else None,
        "batches": sums["children"] + failed["children"],
        "failed_batches": failed["children"],
        "estimated_cost_usd": cost(sums, failed),
    }
    if not images:
        summary["note"] = "The source names no images: nothing was classified."
    return summary | ({"retry": failed["retry"]} if "retry" in failed else {})


def add_partition(results: dict[str, str], name: str) -> None:
    """Make the execution's lines visible in the Athena table."""
    table = glue.get_table(DatabaseName=results["database"], Name=results["table"])["Table"]
    storage = table["StorageDescriptor"] | {"Location": f"s3://{results['bucket']}/{results['prefix']}"}
    partition = {"Values": [name], "StorageDescriptor": storage}
    try:
        glue.create_partition(DatabaseName=results["database"], TableName=results["table"], PartitionInput=partition)
    except glue.exceptions.AlreadyExistsException:
        logger.info("the partition exists", partition=name)


@logger.inject_lambda_context(correlation_id_path="execution_arn")
def lambda_handler(event: dict[str, Any], context: LambdaContext) -> dict[str, Any]:
    request = validated(event)
    results, writer = request["results"], request["map_run"]["ResultWriterDetails"]
    name = request["execution_arn"].rpartition(":")[2]
    manifest = json.load(s3.get_object(Bucket=writer["Bucket"], Key=writer["Key"])["Body"])
    files = manifest["ResultFiles"]
    sums = add_up(records(writer["Bucket"], files["SUCCEEDED"]))
    failed = write_failed(results, name, records(writer["Bucket"], files["FAILED"]))
    add_partition(results, name)
    summary = {
        "execution_arn": request["execution_arn"],
        "map_run_arn": request["map_run"]["MapRunArn"],
        "results": f"s3://{results['bucket']}/{results['prefix']}",
        "manifest": f"s3://{writer['Bucket']}/{writer['Key']}",
        "seconds": round((datetime.now(UTC) - datetime.fromisoformat(request["started"])).total_seconds(), 1),
        **summarise(sums, failed),
    }
    logger.info("batch summarised", **summary)
    return summary
