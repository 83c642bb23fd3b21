"""The Distributed Map of Step Functions, as AWS documents it."""

import gzip
import json
import uuid

import pytest

from resources import eventually, invoke_task

ECHO = {"Echo": {"Type": "Pass", "End": True}}
# Fails while the object "broken" exists, so that a test can repair the children.
FRAGILE = """
import boto3
def handler(event, context):
    keys = {row["Key"] for row in boto3.client("s3").list_objects_v2(Bucket=event["bucket"]).get("Contents", [])}
    if "broken" in keys and "in/2" in [item["Key"] for item in event["items"]]:
        raise ValueError("in/2 is broken")
    return {"child": event["child"], "keys": [item["Key"] for item in event["items"]]}
"""


@pytest.fixture
def bucket(client):
    s3, name = client("s3"), f"conformance-{uuid.uuid4().hex[:12]}"
    s3.create_bucket(Bucket=name)
    for number in range(5):
        s3.put_object(Bucket=name, Key=f"in/{number}", Body=b"x" * number)
    return name


@pytest.fixture
def results(client, bucket):
    """The files that a Map's ResultWriter wrote, by status, from its manifest."""

    def read(key):
        s3 = client("s3")
        manifest = json.load(s3.get_object(Bucket=bucket, Key=key)["Body"])
        files = {
            status: [s3.get_object(Bucket=bucket, Key=file["Key"])["Body"].read().decode() for file in named]
            for status, named in manifest["ResultFiles"].items()
        }
        return {
            status: [json.loads(line) for text in texts for line in text.splitlines()]
            for status, texts in files.items()
        }

    return read


def distributed(reader, states=ECHO, **fields):
    """A Distributed Map over a bucket's items in batches of two; its numbers are expressions."""
    processor = {"ProcessorConfig": {"Mode": "DISTRIBUTED", "ExecutionType": "EXPRESS"}}
    writer = {
        "Resource": "arn:aws:states:::s3:putObject",
        "Arguments": {
            "Bucket": "{% $states.input.bucket %}",
            "Prefix": "{% 'out/' & $states.context.Execution.Name %}",
        },
        "WriterConfig": {"Transformation": "COMPACT", "OutputType": "JSONL"},
    }
    return {
        "Type": "Map",
        "Label": "Items",
        "ItemReader": reader,
        "ItemBatcher": {
            "MaxItemsPerBatch": "{% $states.input.size %}",
            "BatchInput": {"bucket": "{% $states.input.bucket %}", "execution": "{% $states.context.Execution.Name %}"},
        },
        "MaxConcurrency": "{% $states.input.size %}",
        "ToleratedFailurePercentage": "{% $states.input.tolerated %}",
        "ItemProcessor": processor | {"StartAt": next(iter(states)), "States": states},
        "ResultWriter": writer,
        "End": True,
    } | fields


def prefix(name="in/"):
    arguments = {"Bucket": "{% $states.input.bucket %}", "Prefix": name}
    return {"Resource": "arn:aws:states:::s3:listObjectsV2", "Arguments": arguments}


def manifest(key, **config):
    arguments = {"Bucket": "{% $states.input.bucket %}", "Key": key}
    return {"Resource": "arn:aws:states:::s3:getObject", "Arguments": arguments, "ReaderConfig": config}


def request(bucket, tolerated=0):
    return {"bucket": bucket, "size": 2, "tolerated": tolerated}


def fragile_task(arn):
    task = invoke_task(arn)
    task["Arguments"]["Payload"] = (
        "{% {'bucket': $states.input.BatchInput.bucket, 'items': $states.input.Items, "
        "'child': $states.context.Execution.Name} %}"
    )
    return {"Task": task}


def map_run(client, execution):
    states = client("stepfunctions")
    (run,) = states.list_map_runs(executionArn=execution["executionArn"])["mapRuns"]
    return states.describe_map_run(mapRunArn=run["mapRunArn"])


def test_a_map_hands_batches_of_listed_objects_to_its_children_and_writes_their_outputs(
    machine, execute, bucket, results
):
    """Expressions in ItemReader, ItemBatcher, MaxConcurrency and ResultWriter.

    https://docs.aws.amazon.com/step-functions/latest/dg/input-output-itembatcher.html
    https://docs.aws.amazon.com/step-functions/latest/dg/input-output-resultwriter.html
    """
    execution = execute(machine({"Map": distributed(prefix())}), request(bucket))
    output = json.loads(execution["output"])
    assert set(output) == {"MapRunArn", "ResultWriterDetails"}
    written = results(output["ResultWriterDetails"]["Key"])
    assert [[item["Key"] for item in child["Items"]] for child in written["SUCCEEDED"]] == [
        ["in/0", "in/1"],
        ["in/2", "in/3"],
        ["in/4"],
    ]
    common = {"bucket": bucket, "execution": execution["name"]}
    assert [child["BatchInput"] for child in written["SUCCEEDED"]] == [common] * 3
    assert written["SUCCEEDED"][2]["Items"][0]["Size"] == 4
    assert (written["FAILED"], written["PENDING"]) == ([], [])


def test_a_batch_has_a_maximum_size_in_bytes(machine, execute, bucket, results):
    """https://docs.aws.amazon.com/step-functions/latest/dg/input-output-itembatcher.html, MaxInputBytesPerBatch"""
    state = distributed(prefix(), ItemBatcher={"MaxInputBytesPerBatch": 500})
    output = json.loads(execute(machine({"Map": state}), request(bucket))["output"])
    written = results(output["ResultWriterDetails"]["Key"])["SUCCEEDED"]
    assert sum(len(child["Items"]) for child in written) == 5
    assert [len(json.dumps(child, separators=(",", ":"))) <= 500 for child in written] == [True] * len(written)
    assert 1 < len(written) < 5


@pytest.mark.parametrize("kind", ["csv", "jsonl", "inventory"])
def test_a_map_reads_compressed_lists_and_inventories(client, machine, execute, bucket, results, kind):
    """https://docs.aws.amazon.com/step-functions/latest/dg/input-output-itemreader.html"""
    inventory = {
        "destinationBucket": f"arn:aws:s3:::{bucket}",
        "fileSchema": "Bucket, Key",
        "files": [{"key": "i.csv.gz"}],
    }
    objects = {
        "l.csv.gz": gzip.compress(b"Bucket,Key\nb,in/a b\n"),
        "l.jsonl.gz": gzip.compress(b'{"Bucket": "b", "Key": "in/a b"}\n'),
        "i.csv.gz": gzip.compress(b'"b","in/a%20b"\n'),
        "manifest.json": json.dumps(inventory).encode(),
    }
    for key, data in objects.items():
        client("s3").put_object(Bucket=bucket, Key=key, Body=data)
    reader = {
        "csv": manifest("l.csv.gz", InputType="CSV", CSVHeaderLocation="FIRST_ROW"),
        "jsonl": manifest("l.jsonl.gz", InputType="JSONL"),
        "inventory": manifest("manifest.json", InputType="MANIFEST"),
    }[kind]
    output = json.loads(execute(machine({"Map": distributed(reader)}), request(bucket))["output"])
    (child,) = results(output["ResultWriterDetails"]["Key"])["SUCCEEDED"]
    key = "in/a%20b" if kind == "inventory" else "in/a b"  # S3 encodes the keys of an inventory
    assert child["Items"] == [{"Bucket": "b", "Key": key}]


def test_an_empty_prefix_succeeds_without_children(client, machine, execute, bucket):
    execution = execute(machine({"Map": distributed(prefix("none/"))}), request(bucket))
    assert execution["status"] == "SUCCEEDED"
    assert map_run(client, execution)["itemCounts"]["total"] == 0
    assert "ResultWriterDetails" in json.loads(execution["output"])


def test_tolerated_failures_are_counted_in_items_and_written_with_their_input(
    client, function, machine, execute, bucket, results
):
    """https://docs.aws.amazon.com/step-functions/latest/dg/state-map-distributed.html, ToleratedFailurePercentage"""
    client("s3").put_object(Bucket=bucket, Key="broken", Body=b"")
    arn = machine({"Map": distributed(prefix(), fragile_task(function(FRAGILE)))})
    execution = execute(arn, request(bucket, tolerated=40))
    assert execution["status"] == "SUCCEEDED"
    run = map_run(client, execution)
    assert (run["itemCounts"]["failed"], run["itemCounts"]["succeeded"], run["executionCounts"]["failed"]) == (2, 3, 1)
    (failed,) = results(json.loads(execution["output"])["ResultWriterDetails"]["Key"])["FAILED"]
    assert (failed["Error"], failed["Status"]) == ("ValueError", "FAILED")
    assert [item["Key"] for item in json.loads(failed["Input"])["Items"]] == ["in/2", "in/3"]
    assert execute(arn, request(bucket, tolerated=39))["error"] == "States.ExceedToleratedFailureThreshold"


def test_a_redrive_runs_only_the_failed_children_under_their_names(client, function, machine, execute, bucket, results):
    """https://docs.aws.amazon.com/step-functions/latest/dg/redrive-map-run.html"""
    states, s3 = client("stepfunctions"), client("s3")
    s3.put_object(Bucket=bucket, Key="broken", Body=b"")
    arn = machine({"Map": distributed(prefix(), fragile_task(function(FRAGILE)))})
    failed = execute(arn, request(bucket))
    run = map_run(client, failed)
    children = states.list_executions(mapRunArn=run["mapRunArn"])["executions"]
    (broken,) = [child for child in children if child["status"] == "FAILED"]
    assert (failed["status"], run["status"], ":express:" in broken["executionArn"]) == ("FAILED", "FAILED", True)

    s3.delete_object(Bucket=bucket, Key="broken")
    states.redrive_execution(executionArn=failed["executionArn"])
    succeeded = eventually(lambda: finished(states, failed["executionArn"]))
    run = map_run(client, succeeded)
    assert (succeeded["status"], run["status"], run["redriveCount"]) == ("SUCCEEDED", "SUCCEEDED", 1)
    details = json.loads(succeeded["output"])["ResultWriterDetails"]
    assert "/Redrive-1/" in details["Key"]
    written = results(details["Key"])["SUCCEEDED"]
    assert sorted(key for child in written for key in child["keys"]) == [f"in/{number}" for number in range(5)]
    assert broken["name"] in {child["child"] for child in written if "in/2" in child["keys"]}


def finished(states, arn):
    execution = states.describe_execution(executionArn=arn)
    return execution["status"] != "RUNNING" and execution


def test_a_stopped_map_starts_no_more_children_until_it_is_redriven(client, machine, bucket, wait_scale):
    """https://docs.aws.amazon.com/step-functions/latest/apireference/API_StopExecution.html"""
    states = client("stepfunctions")
    slow = {"Wait": {"Type": "Wait", "Seconds": int(1 / wait_scale), "End": True}}
    arn = machine({"Map": distributed(prefix(), slow, MaxConcurrency=1)})
    execution = states.start_execution(stateMachineArn=arn, input=json.dumps(request(bucket)))
    assert eventually(lambda: states.list_map_runs(**only_arn(execution))["mapRuns"])
    running = eventually(lambda: (run := map_run(client, execution))["itemCounts"]["running"] and run)
    assert (running["itemCounts"]["running"], running["itemCounts"]["pending"]) == (2, 3)
    states.stop_execution(**only_arn(execution))
    stopped = eventually(lambda: (run := map_run(client, execution))["status"] == "ABORTED" and run)
    assert (stopped["itemCounts"]["succeeded"], stopped["itemCounts"]["aborted"]) == (2, 3)
    states.redrive_execution(**only_arn(execution))
    succeeded = eventually(lambda: finished(states, execution["executionArn"]))
    assert succeeded["status"] == "SUCCEEDED"
    assert map_run(client, execution)["itemCounts"]["succeeded"] == 5


def only_arn(execution):
    return {"executionArn": execution["executionArn"]}


def test_the_children_of_a_logged_machine_can_have_tasks(client, function, machine, execute, bucket):
    """https://docs.aws.amazon.com/step-functions/latest/dg/cw-logs.html"""
    group = "/aws/vendedlogs/states/children"
    client("logs").create_log_group(logGroupName=group)
    destination = {"logGroupArn": f"arn:aws:logs:us-east-1:000000000000:log-group:{group}:*"}
    logging = {"level": "ALL", "destinations": [{"cloudWatchLogsLogGroup": destination}]}
    arn = machine(
        {"Map": distributed(prefix(), fragile_task(function(FRAGILE)))}, settings={"loggingConfiguration": logging}
    )
    assert execute(arn, request(bucket))["status"] == "SUCCEEDED"

    def logged():
        events = client("logs").filter_log_events(logGroupName=group)["events"]
        types = [json.loads(event["message"])["type"] for event in events]
        return types.count("TaskSucceeded") == 3 and types

    assert "MapRunStarted" in eventually(logged, 5)
