"""What a million images would be billed for, counted in real runs on the local stack: benchmarks/usage.json.

    .venv/bin/python -m benchmarks.usage

Classifies photographs of 50 kB as uploads, one execution per image, and in batches of 300 and of 500, and counts what
AWS bills: state transitions in the histories, Lambda's requests and duration by its own metrics, the endpoint's CPU
time and the bytes to and from it, requests to S3, bytes of logs. `fixed` is the share of a batch's execution that does
not grow with its images. `reviews` is what an image costs in addition if it is sent to review, or drawn for an audit,
and decided by a reviewer: writes to DynamoDB are computed from the items, the table's indexes and AWS's rules for
capacity. One function runs at a time, on a core of its own, as on Lambda; the emulator's share of a
duration is in it. benchmarks/scale.py computes costs from the file.
"""

import json
import time
import uuid
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.batch import cpu_seconds, delete, photographs, run, upload
from functions.review_item import is_drawn
from local.command import console, report_errors
from local.executions import Watch, finished
from local.target import Target, target
from review.table import Review, ReviewTable

FILE = Path(__file__).with_suffix(".json")
EXECUTIONS, IMAGES = 100, 3000
WARM_UP = 20
THRESHOLD = 0.75
AUDIT_RATE = 0.02  # the default
REVIEWS = 20  # of each reason
SIZES = (300, 500)
KEYS_PER_LIST = 1000
EVENT_BYTES = 26  # that CloudWatch Logs adds to each event
RECORDED = "prediction"  # RecordOutcome's message, the last thing that an execution causes

Counts = dict[str, float]
Item = dict[str, dict[str, str]]  # in DynamoDB's JSON


def functions(found: Target) -> dict[str, Counts]:
    """Requests and GB-seconds so far of each function, by the name of its output and by AWS/Lambda's metrics."""
    names = [name for name in found.outputs if name.endswith("FunctionName")]
    return {name.removesuffix("FunctionName"): used(found, found.outputs[name]) for name in names}


def used(found: Target, function: str) -> Counts:
    memory = found.client("lambda").get_function_configuration(FunctionName=function)["MemorySize"]
    now = datetime.now(UTC)
    sums = {}
    for name in ("Invocations", "Duration"):
        points = found.client("cloudwatch").get_metric_statistics(
            Namespace="AWS/Lambda", MetricName=name, Dimensions=[{"Name": "FunctionName", "Value": function}],
            StartTime=now - timedelta(hours=24), EndTime=now + timedelta(minutes=1), Period=60, Statistics=["Sum"],
        )["Datapoints"]  # fmt: skip
        sums[name] = sum(point["Sum"] for point in points)
    return {"lambda_requests": sums["Invocations"], "lambda_gb_seconds": sums["Duration"] / 1000 * memory / 1024}


def difference(after: Counts, before: Counts) -> Counts:
    return {name: value - before[name] for name, value in after.items()}


def total(parts: Iterable[Counts]) -> Counts:
    parts = list(parts)
    return {name: sum(part.get(name, 0) for part in parts) for name in {name: 0 for part in parts for name in part}}


def log_bytes(found: Target) -> int:
    """Bytes that CloudWatch Logs would bill, of all log groups."""
    logs = found.client("logs")
    groups = [row["logGroupName"] for page in logs.get_paginator("describe_log_groups").paginate()
              for row in page["logGroups"]]  # fmt: skip
    events = (
        event
        for group in groups
        for page in logs.get_paginator("filter_log_events").paginate(logGroupName=group)
        for event in page["events"]
    )
    return sum(len(event["message"].encode()) + EVENT_BYTES for event in events)


def entered_states(found: Target, arn: str) -> int:
    pages = found.client("stepfunctions").get_paginator("get_execution_history").paginate(executionArn=arn)
    return sum(event["type"].endswith("StateEntered") for page in pages for event in page["events"])


class Meter:
    """Counts what the stack used since it was made."""

    def __init__(self, found: Target) -> None:
        self.found = found
        assert found.local
        self.stack = found.local
        self.functions, self.cpu, self.logged = functions(found), cpu_seconds(self.stack), log_bytes(found)

    def read(self) -> tuple[Counts, dict[str, Counts]]:
        """Everything but transitions and S3; Lambda's share also by function."""
        now, cpu = functions(self.found), cpu_seconds(self.stack)
        by_function = {name: difference(now[name], self.functions[name]) for name in now}
        counts = {
            "function_cpu_seconds": cpu["function"] - self.cpu["function"],
            "endpoint_cpu_seconds": cpu["endpoint"] - self.cpu["endpoint"],
            "log_bytes": log_bytes(self.found) - self.logged,
        }
        return counts | total(by_function.values()), by_function


def response_bytes(found: Target, image: bytes) -> int:
    """The size of the endpoint's response to one image."""
    response = found.client("sagemaker-runtime").invoke_endpoint(
        EndpointName=found.outputs["EndpointName"], Body=image, ContentType="image/jpeg", Accept="application/json"
    )
    return len(response["Body"].read())


def accepted(found: Target, images: list[bytes]) -> list[bytes]:
    """Those of the images whose confidence reaches the default threshold."""
    request = {"EndpointName": found.outputs["EndpointName"], "ContentType": "image/jpeg", "Accept": "application/json"}
    runtime = found.client("sagemaker-runtime")
    responses = [json.load(runtime.invoke_endpoint(Body=image, **request)["Body"]) for image in images]
    return [
        image
        for image, response in zip(images, responses, strict=True)
        if response["predictions"][0]["probability"] >= THRESHOLD
    ]


def uploads(found: Target, prefix: str, images: list[bytes], count: int) -> list[str]:
    """Upload the images one after the other; each starts an execution, whose ARN is returned."""
    states, s3 = found.client("stepfunctions"), found.client("s3")
    watch = Watch(states, found.outputs["ClassifyImageStateMachineArn"], prefix)
    arns = []
    for number in range(count):
        body = images[number % len(images)]
        s3.put_object(Bucket=found.outputs["ImageBucketName"], Key=f"{prefix}{number:06}", Body=body)
        while not (ended := list(watch.ended())):
            time.sleep(0.1)
        (outcome,) = ended
        assert outcome.status == "SUCCEEDED" and outcome.execution_arn
        arns.append(outcome.execution_arn)
    wait_for_the_log(found, arns[-1])
    return arns


def wait_for_the_log(found: Target, arn: str, text: str = RECORDED) -> None:
    """Wait until the execution's outcome, or the decision on its review, is recorded."""
    logs, group = found.client("logs"), found.outputs["PredictionLogGroupName"]
    while not any(
        arn in event["message"] and text in event["message"]
        for page in logs.get_paginator("filter_log_events").paginate(logGroupName=group)
        for event in page["events"]
    ):
        time.sleep(0.2)


def one_by_one(found: Target, images: list[bytes]) -> dict[str, Any]:
    prefix = f"{found.outputs['UploadPrefix']}benchmark/"
    images = accepted(found, images)
    uploads(found, f"{prefix}warm-up/", images, WARM_UP)
    meter = Meter(found)
    arns = uploads(found, f"{prefix}single/", images, EXECUTIONS)
    counts, _ = meter.read()
    stored = sum(len(images[number % len(images)]) for number in range(EXECUTIONS))
    counts |= {
        "transitions": sum(entered_states(found, arn) for arn in arns),
        "endpoint_bytes": stored + EXECUTIONS * response_bytes(found, images[0]),
        **dict.fromkeys(("s3_get", "events", "dynamodb_writes"), EXECUTIONS),
    }
    delete(found, prefix)
    return {"images": EXECUTIONS, "image_bytes": stored // EXECUTIONS, "counts": rounded(counts), "fixed": {}}


def in_batches(found: Target, prefix: str, size: int) -> dict[str, Any]:
    """The counts of a batch over what is under the prefix, one function at a time."""
    run(found, prefix, batch_size=size, max_concurrency=1)  # warms up
    meter = Meter(found)
    summary = run(found, prefix, batch_size=size, max_concurrency=1)
    counts, by_function = meter.read()
    outputs = batch_outputs(found, summary)
    children = len(outputs)
    entered = entered_states(found, summary["execution_arn"])
    fixed = total([by_function["PrepareBatch"], by_function["SummariseBatch"], {"transitions": entered, "events": 1}])
    counts |= {
        "transitions": entered + children,
        "express_requests": children,
        "express_seconds": express_seconds(found, summary["map_run_arn"]),
        "endpoint_bytes": sum(output["endpoint_bytes"] for output in outputs),
        "endpoint_seconds": sum(output["endpoint_ms"] for output in outputs) / 1000,
        "s3_get": summary["images"],
        "s3_put": children,
        "s3_list": summary["items"] / KEYS_PER_LIST,
        "events": 1,
    }
    return {"images": summary["images"], "batch_size": size, "counts": rounded(counts), "fixed": rounded(fixed)}


def reviewed(found: Target, images: list[bytes]) -> dict[str, Any]:
    """What images cost in addition that are sent to review, or audited, and decided one after the other."""
    prefix, accepted_images = f"benchmark/reviews/{uuid.uuid4()}/", accepted(found, images)
    table = ReviewTable(found.client("dynamodb"), found.outputs["ReviewTableName"])
    requests = {
        "low_confidence": [not_drawn(found, prefix, image) | {"threshold": 1} for image in accepted_images[:REVIEWS]],
        "audit": [drawn(found, prefix, accepted_images[number % len(accepted_images)]) for number in range(REVIEWS)],
    }
    plain = entered_states(found, execute(found, not_drawn(found, prefix, accepted_images[0])))
    made = {reason: decided(found, table, requests[reason], plain) for reason in requests}
    delete(found, prefix)
    return made


def not_drawn(found: Target, prefix: str, image: bytes) -> dict[str, Any]:
    """A request for a new object that is not drawn for an audit."""
    return next(request for request in objects(found, prefix, image) if not is_audited(request))


def drawn(found: Target, prefix: str, image: bytes) -> dict[str, Any]:
    """A request for a new object that is drawn for an audit: its version decides."""
    return next(request for request in objects(found, prefix, image) if is_audited(request))


def objects(found: Target, prefix: str, image: bytes) -> Iterator[dict[str, Any]]:
    """Requests for one new object after the other."""
    bucket = found.outputs["ImageBucketName"]
    while True:
        key = f"{prefix}{uuid.uuid4()}.jpg"
        version = found.client("s3").put_object(Bucket=bucket, Key=key, Body=image)["VersionId"]
        yield {"s3_bucket": bucket, "s3_key": key, "s3_version_id": version}


def is_audited(request: dict[str, Any]) -> bool:
    return is_drawn(f"s3://{request['s3_bucket']}/{request['s3_key']}", request["s3_version_id"], AUDIT_RATE)


def execute(found: Target, request: dict[str, Any]) -> str:
    """Classify the image; returns the ARN of the execution that has ended."""
    states, machine = found.client("stepfunctions"), found.outputs["ClassifyImageStateMachineArn"]
    arn: str = states.start_execution(stateMachineArn=machine, input=json.dumps(request))["executionArn"]
    finished(states, arn, time.monotonic() + 60, 0.1)
    wait_for_the_log(found, arn)
    return arn


def decided(found: Target, table: ReviewTable, requests: list[dict[str, Any]], plain: int) -> dict[str, Any]:
    """The counts of these images' reviews. plain: the states of an execution whose image is not reviewed."""
    arns = [execute(found, request) for request in requests]
    reviews = [
        table.get(f"s3://{request['s3_bucket']}/{request['s3_key']}", request["s3_version_id"]) for request in requests
    ]
    indexes = table.client.describe_table(TableName=table.name)["Table"]["GlobalSecondaryIndexes"]
    meter, writes = Meter(found), 0
    for review in reviews:
        states = [raw_item(table, review)]
        claimed = table.claim(review, "reviewer@example.com")
        states.append(raw_item(table, review))
        table.decide(claimed, "reviewer@example.com", "label", review.label)
        states.append(raw_item(table, review))
        writes += sum(write_units(*change, indexes) for change in pairwise([{}, *states]))
        wait_for_the_log(found, review.execution_arn or "", "reviewed_at")
        table.client.delete_item(TableName=table.name, Key=review.key)
    counts, _ = meter.read()
    counts |= {"transitions": sum(entered_states(found, arn) - plain for arn in arns), "dynamodb_writes": writes}
    counts |= dict.fromkeys(("s3_get", "events"), len(reviews))
    size = item_bytes(states[-1])
    return {"images": len(reviews), "item_bytes": size, "counts": rounded(counts)}


def raw_item(table: ReviewTable, review: Review) -> Item:
    return table.client.get_item(TableName=table.name, Key=review.key, ConsistentRead=True)["Item"]


def write_units(before: Item, after: Item, indexes: list[dict[str, Any]]) -> int:
    """Write request units of a put or an update, in the table and in its indexes.

    An index is written if an attribute that it has changes, twice if one of its key does.
    https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/GSI.html#GSI.ThroughputConsiderations.Writes
    """
    total = units(before, after)
    for index in indexes:
        keys = {key["AttributeName"] for key in index["KeySchema"]}
        projection = index["Projection"]
        names = {*after, *before}
        if projection["ProjectionType"] != "ALL":
            names = keys | {"image", "version"} | {*projection.get("NonKeyAttributes", [])}
        old, new = ({name: item[name] for name in names if name in item} for item in (before, after))
        if any(old.get(name) != new.get(name) for name in keys):
            total += units(old) + units(new)
        elif old != new:
            total += units(old, new)
    return total


def units(*items: Item) -> int:
    """Write request units for the largest of the items: one per kilobyte."""
    return max(-(-item_bytes(item) // 1024) for item in items)


def item_bytes(item: Item) -> int:
    """https://docs.aws.amazon.com/amazondynamodb/latest/developerguide/CapacityUnitCalculations.html"""
    return sum(
        len(name) + (len(value["S"].encode()) if "S" in value else -(-len(value["N"].strip("-0.")) // 2) + 1)
        for name, value in item.items()
    )


def batch_outputs(found: Target, summary: dict[str, Any]) -> list[dict[str, Any]]:
    """ClassifyBatch's outputs, from the Map Run's results."""
    s3, bucket = found.client("s3"), found.outputs["ResultsBucketName"]

    def read(key: str) -> str:
        return s3.get_object(Bucket=bucket, Key=key)["Body"].read().decode()

    manifest = json.loads(read(summary["manifest"].removeprefix(f"s3://{bucket}/")))
    return [
        json.loads(line) for file in manifest["ResultFiles"]["SUCCEEDED"] for line in read(file["Key"]).splitlines()
    ]


def express_seconds(found: Target, map_run: str) -> float:
    """What the Map Run's Express children are billed for: their durations, each rounded up to 100 ms."""
    pages = found.client("stepfunctions").get_paginator("list_executions").paginate(mapRunArn=map_run)
    rows = [row for page in pages for row in page["executions"]]
    return sum(-(-((row["stopDate"] - row["startDate"]).total_seconds()) // 0.1) * 0.1 for row in rows)


def rounded(counts: Counts) -> dict[str, float]:
    return {name: round(value, 3) for name, value in counts.items()}


def main() -> None:
    images = photographs()
    prefix = "benchmark/usage/"
    with report_errors(), target() as found:
        reviews = reviewed(found, images)
        single = one_by_one(found, images)
        stored = upload(found, prefix, IMAGES, images)
        batches = [in_batches(found, prefix, size) for size in SIZES]
        delete(found, prefix)
    usage = {"image_bytes": stored // IMAGES, "single": single, "batches": batches, "reviews": reviews}
    FILE.write_text(json.dumps(usage, indent=2) + "\n")
    console.print(f"Written to {FILE.name}")


if __name__ == "__main__":
    main()
