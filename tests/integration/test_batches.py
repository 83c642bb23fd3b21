"""Batches through the deployed state machine, and the faults that they must survive.

In every scenario, each image has exactly one line in the results of its execution, and the summary counts the lines:
`batches.check` asserts it for every batch that succeeds.
"""

import gzip
import io
import json
import random
import shutil
import time
import urllib.parse

import pytest
from PIL import Image

from batches import Batches
from local import batch as command
from local.deployment import BUILD, deploy, model_archive, upload_model
from local.target import Target
from monitoring import outcomes
from workflow import DIGITS, WAIT_SCALE, Workflow, wait_for

# Faults of the function's process, planted in a copy of the built function. Each strikes once, where a test has made
# the file of its name.
FAULT = """

def _planted(name):
    import os, tempfile
    try:
        os.unlink(os.path.join(tempfile.gettempdir(), name))
        return True
    except FileNotFoundError:
        return False

"""
SECONDS_TO_TIME_OUT = 6


@pytest.fixture(scope="module")
def faulty_build():
    folder = BUILD.with_name("faulty")
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(BUILD, folder)
    template = (BUILD / "template.yaml").read_text()
    assert "Timeout: 100" in template
    (folder / "template.yaml").write_text(template.replace("Timeout: 100", f"Timeout: {SECONDS_TO_TIME_OUT}"))
    (code,) = folder.glob("*/classify_batch.py")
    text = code.read_text()
    write = '    write(batch["results"]["bucket"], key, lines)\n'
    started = "    started = time.perf_counter()\n    request = validated(event)\n"
    assert text.count(write) == text.count(started) == 1
    text = text.replace(write, f'{write}    if _planted("kill-after-write"):\n        import os\n        os._exit(1)\n')
    text = text.replace(started, f'    if _planted("time-out"):\n        time.sleep(60)\n{started}')
    code.write_text(text.replace("\nlogger = Logger()\n", f"{FAULT}\nlogger = Logger()\n"))
    for compiled in code.parent.glob("__pycache__/classify_batch.*"):
        compiled.unlink()
    yield folder / "template.yaml"
    shutil.rmtree(folder)


@pytest.fixture(scope="module")
def batches(workflow, stack, faulty_build):
    """A stack of its own, whose ClassifyBatch can be made to fail."""
    model = upload_model(stack, model_archive())
    outputs = deploy(stack, "batches", faulty_build, EndpointType="serverless", ModelDataUrl=model)
    return Batches(stack, outputs)


@pytest.fixture(scope="session")
def digits():
    """40 scans of digits."""
    paths = sorted((DIGITS / "test").glob("*/*.png"))[::9][:40]
    return {f"{number:02}.png": path.read_bytes() for number, path in enumerate(paths)}


def plant(batches, fault):
    (batches.stack.directory / "tmp" / fault).touch()


def failed_message(batches, arn):
    return Workflow(batches.stack, batches.outputs).message_about(batches.outputs["FailureQueueUrl"], arn)


def test_a_prefix_is_classified_and_its_summary_is_an_event(batches, outcome_events, digits):
    keys = batches.upload("plain/", digits)
    batches.s3.put_object(Bucket=batches.bucket, Key="plain/folder/", Body=b"")
    batch = batches.run(s3_prefix="plain/", batch_size=15)
    assert (batch.status, batch.keys) == ("SUCCEEDED", keys)
    assert (batch.output["batches"], batch.output["skipped"], batch.output["error"]) == (3, 1, 0)
    assert batch.output["accepted"] > 30
    assert {line["threshold"] for line in batch.lines} == {0.75}
    assert batch.output["manifest"].startswith(f"s3://{batches.results}/batches/")
    event = Workflow(batches.stack, batches.outputs).message_about(outcome_events, batch.arn)
    assert (event["detail-type"], event["detail"]) == ("Batch Classified", batch.output)


def test_a_batch_decides_as_single_executions_do(batches, workflow, digits):
    names = ["00.png", "20.png"]
    batches.upload("same/", {name: digits[name] for name in names})
    batch = batches.run(s3_prefix="same/", threshold=0.9)
    for line in sorted(batch.lines, key=lambda line: line["s3_key"]):
        single = workflow.classify(line["s3_key"], digits[line["s3_key"].removeprefix("same/")], threshold=0.9)
        result = single.output or json.loads(single.cause)
        same = ("s3_key", "threshold", "image", "predictions", "label", "confidence", "accepted")
        assert {name: line[name] for name in same} == {name: result[name] for name in same}


@pytest.mark.parametrize("kind", ["csv", "jsonl.gz", "inventory"])
def test_manifests_and_inventories_name_images_in_any_bucket_and_version(batches, digits, kind):
    keys = batches.upload(f"listed {kind}/", dict(list(digits.items())[:3]))
    encoded = [urllib.parse.quote(key, safe="/") for key in keys]
    rows = "".join(f'"{batches.bucket}","{key}","77"\n' for key in encoded).encode()
    bucket = f"arn:aws:s3:::{batches.bucket}"
    inventory = {"destinationBucket": bucket, "fileSchema": "Bucket, Key, Size", "files": [{"key": "i.csv.gz"}]}
    json_lines = "".join(json.dumps({"Bucket": batches.bucket, "Key": key}) + "\n" for key in keys)
    files = {
        "csv": "s3_key\n" + "\n".join(keys),
        "jsonl.gz": gzip.compress(json_lines.encode()),
        "inventory": json.dumps(inventory),
    }
    batches.s3.put_object(Bucket=batches.bucket, Key="i.csv.gz", Body=gzip.compress(rows))
    name = "lists/manifest.json" if kind == "inventory" else f"lists/images.{kind}"
    batches.s3.put_object(Bucket=batches.bucket, Key=name, Body=files[kind])
    batch = batches.run(s3_key=name)
    assert (batch.status, batch.keys, batch.errors) == ("SUCCEEDED", keys, {})


def test_an_empty_prefix_succeeds_and_says_so(batches):
    batch = batches.run(s3_prefix="nothing/")
    assert (batch.status, batch.output["images"], batch.lines) == ("SUCCEEDED", 0, [])
    assert batch.output["note"] == "The source names no images: nothing was classified."


def test_an_invalid_input_fails_by_name_and_reaches_the_failure_queue(batches):
    batch = batches.run(s3_prefix="plain/", treshold=0.9)
    assert (batch.status, batch.error) == ("FAILED", "InvalidInputError")
    assert "treshold" in json.loads(batch.cause)["errorMessage"]
    assert failed_message(batches, batch.arn)["detail"]["error"] == "InvalidInputError"


def test_low_confidence_is_sent_to_review_only_if_the_input_asks(batches, digits):
    (key,) = batches.upload("review/", {"one.png": digits["00.png"]})
    workflow = Workflow(batches.stack, batches.outputs)
    silent = batches.run(s3_prefix="review/", threshold=1)
    assert key not in {review.s3_key for review in workflow.reviews.pending()}
    asking = batches.run(s3_prefix="review/", threshold=1, review=True)
    assert (silent.output["review"], asking.output["review"]) == (1, 1)
    (review,) = [review for review in workflow.reviews.pending() if review.s3_key == key]
    assert (review.execution_arn, review.reason) == (asking.arn, "low_confidence")
    assert review.predictions == asking.lines[0]["predictions"]
    decided = workflow.reviews.decide(review, "ada", "none_of_these")
    batches.run(s3_prefix="review/", threshold=1, review=True)
    assert workflow.reviews.get(review.image, review.version) == decided


def test_broken_missing_and_overwritten_objects_have_their_lines(batches, digits):
    batches.s3.put_bucket_versioning(Bucket=batches.bucket, VersioningConfiguration={"Status": "Enabled"})
    put = {"Bucket": batches.bucket, "Key": "mixed/changed.png"}
    first = batches.s3.put_object(**put, Body=digits["00.png"])["VersionId"]
    batches.s3.put_object(**put, Body=b"overwritten")
    batches.s3.put_bucket_versioning(Bucket=batches.bucket, VersioningConfiguration={"Status": "Suspended"})
    batches.upload("mixed/", {"good.png": digits["01.png"], "broken.png": digits["02.png"][:60], "empty.png": b""})
    rows = [{"s3_key": f"mixed/{name}.png"} for name in ("good", "broken", "missing", "empty", "changed", "good")]
    rows.insert(4, {"s3_key": "mixed/changed.png", "s3_version_id": first})
    text = "".join(json.dumps(row) + "\n" for row in [*rows, {"no": "key"}])
    batches.s3.put_object(Bucket=batches.bucket, Key="lists/mixed.jsonl", Body=text)
    batch = batches.run(s3_key="lists/mixed.jsonl")
    assert batch.status == "SUCCEEDED"
    assert [(line.get("s3_key", "").removeprefix("mixed/"), line.get("error")) for line in batch.lines] == [
        ("good.png", None),
        ("broken.png", "UnsupportedImageError"),
        ("missing.png", "ImageNotFoundError"),
        ("empty.png", "UnsupportedImageError"),
        ("changed.png", None),
        ("changed.png", "UnsupportedImageError"),
        ("good.png", None),
        ("", "InvalidInputError"),
    ]


def test_an_endpoint_that_throttles_a_fifth_of_its_requests_loses_nothing(batches, endpoint, digits):
    keys = batches.upload("throttled/", digits)
    endpoint.throttle_every = 5
    batch = batches.run(s3_prefix="throttled/", batch_size=2, max_concurrency=4)
    assert (batch.status, batch.keys, batch.errors) == ("SUCCEEDED", keys, {})


def test_an_endpoint_that_is_dead_for_ten_seconds_loses_nothing(batches, endpoint, digits):
    """Ten seconds at the speed of this stack, whose waits between retries are shorter."""
    keys = batches.upload("dead/", digits)
    arn = batches.start(s3_prefix="dead/", batch_size=20, max_concurrency=2)
    endpoint.dead_until = float("inf")
    wait_for(lambda: endpoint.refused)
    endpoint.dead_until = time.monotonic() + 10 * WAIT_SCALE
    batch = batches.ended(arn)
    assert (batch.status, batch.keys, batch.errors) == ("SUCCEEDED", keys, {})


@pytest.mark.parametrize("fault", ["time-out", "kill-after-write"])
def test_a_function_that_dies_once_classifies_each_image_once(batches, digits, fault):
    keys = batches.upload(f"{fault}/", digits)
    plant(batches, fault)
    batch = batches.run(s3_prefix=f"{fault}/", batch_size=20, max_concurrency=1)
    assert (batch.status, batch.keys, batch.errors) == ("SUCCEEDED", keys, {})
    assert not (batches.stack.directory / "tmp" / fault).exists()


def test_a_batch_above_the_endpoints_payload_limit_is_sent_in_several_requests(batches):
    noise = Image.frombytes("L", (380, 380), random.Random(0).randbytes(144_400))
    buffer = io.BytesIO()
    noise.save(buffer, "PNG")
    assert 140_000 < buffer.tell() < 144 * 1024
    keys = batches.upload("large/", {f"{number}.png": buffer.getvalue() for number in range(50)})
    batch = batches.run(s3_prefix="large/", batch_size=50)
    assert (batch.status, batch.keys, batch.errors) == ("SUCCEEDED", keys, {})
    assert 50 * buffer.tell() > 4 * 1024 * 1024


def odd_names(count):
    """Distinct names with every kind of character that is easily lost; the longest has S3's 1,024 bytes."""
    kinds = [
        "two words",
        "a+b",
        "50%",
        "a%20b",
        "größe 猫 🐈",
        'it\'s "quoted"',
        "line\nbreak",
        "tab\there",
        "a&b=c?#",
        "\\x",
    ]
    names = [f"{number:05} {kinds[number % len(kinds)]}.png" for number in range(count - 1)]
    return [*names, "é" * 508 + ".png"]


def test_ten_thousand_objects_with_odd_names_are_each_classified_once(stack, workflow, digits):
    """On the ordinary stack: on a busy core, 300 images take longer than SECONDS_TO_TIME_OUT.

    Two children at once are never throttled: the waits between 20 retries are shorter here, but the work is not.
    """
    batches, data = Batches(stack, workflow.outputs), digits["00.png"]
    keys = batches.upload("odd/", dict.fromkeys(odd_names(10_000), data))
    assert max(len(key.encode()) for key in keys) == 1024
    batch = batches.run(s3_prefix="odd/", max_concurrency=2)
    assert (batch.status, batch.keys, batch.errors) == ("SUCCEEDED", keys, {})


def test_a_stopped_batch_continues_where_it_was_stopped(batches, endpoint, digits):
    keys = batches.upload("stopped/", digits)
    endpoint.dead_until = time.monotonic() + 4
    arn = batches.start(s3_prefix="stopped/", batch_size=5, max_concurrency=2)
    wait_for(lambda: (run := batches.map_run(arn)) and run["itemCounts"]["running"])
    batches.states.stop_execution(executionArn=arn)
    run = wait_for(lambda: (run := batches.map_run(arn))["status"] == "ABORTED" and run)
    assert run["itemCounts"]["aborted"] > 0
    assert failed_message(batches, arn)["detail"]["status"] == "ABORTED"
    batch = batches.redrive(arn)
    assert (batch.status, batch.keys, batch.errors) == ("SUCCEEDED", keys, {})


def test_a_batch_with_a_failed_part_is_repeated_only_there(batches, endpoint, digits):
    keys = batches.upload("failed/", digits)
    html = b"<html>It works!</html>"
    endpoint.respond(html)
    failed = batches.run(s3_prefix="failed/", batch_size=10, max_concurrency=1)
    assert (failed.status, failed.error) == ("FAILED", "States.ExceedToleratedFailureThreshold")
    assert failed_message(batches, failed.arn)["detail"]["error"] == failed.error
    batch = batches.redrive(failed.arn)
    assert (batch.status, batch.keys, batch.errors) == ("SUCCEEDED", keys, {})


def test_a_tolerated_failure_has_its_lines_and_a_list_that_is_a_source(batches, endpoint, digits):
    keys = batches.upload("tolerated/", digits)
    endpoint.respond(b"<html>It works!</html>")
    batch = batches.run(s3_prefix="tolerated/", batch_size=10, max_concurrency=1, tolerated_failure_percentage=25)
    assert (batch.status, batch.keys, batch.output["failed_batches"]) == ("SUCCEEDED", keys, 1)
    assert batch.output["errors"] == {"EndpointResponseError": 10}
    again = batches.run(**batch.output["retry"])
    assert (again.status, again.keys) == ("SUCCEEDED", sorted(batch.errors))
    assert again.errors == {}


def test_the_same_input_started_twice_is_two_batches(batches, digits):
    keys = batches.upload("twice/", digits)
    first, second = [batches.start(s3_prefix="twice/", batch_size=10) for _ in range(2)]
    one, other = batches.ended(first), batches.ended(second)
    assert one.keys == other.keys == keys
    assert one.output["results"] != other.output["results"]


def run_command(found, *arguments):
    """make batch with these options."""
    options = command.parse([*arguments])
    command.run(found, options, command.limits(options.threshold, options.concurrency))


def test_the_command_shows_the_summary_and_the_reader_finds_every_row(batches, digits, capsys, tmp_path):
    keys = batches.upload("command/", digits)
    found = Target("batches", batches.outputs, batches.stack.client, batches.stack)
    run_command(found, "--prefix", "command/", "--threshold", "0.9", "--concurrency", "2")
    printed = capsys.readouterr().out
    name = printed.split("Execution ")[1].split()[0]
    assert "40 images in" in printed and f"make results EXECUTION={name}" in printed
    rows = list(outcomes.from_batches(batches.s3, batches.results, execution=name))
    assert sorted(row["s3_key"] for row in rows) == keys
    assert outcomes.write(outcomes.matching(rows, outcome="accepted"), tmp_path / "accepted.parquet") > 30


def test_the_command_stops_a_batch_on_request_and_continues_it(batches, endpoint, digits, capsys, monkeypatch):
    keys = batches.upload("interrupted/", digits)
    found = Target("batches", batches.outputs, batches.stack.client, batches.stack)
    counts = command.counts

    def press_ctrl_c(states, arn):
        if counts(states, arn).get("running"):
            raise KeyboardInterrupt
        return {}

    endpoint.dead_until = float("inf")
    with monkeypatch.context() as patched:
        patched.setattr(command, "counts", press_ctrl_c)
        patched.setattr(command.console, "input", lambda _: "y")
        patched.setattr("sys.stdin.isatty", lambda: True, raising=False)
        run_command(found, "--prefix", "interrupted/")
    name = capsys.readouterr().out.split("make batch EXECUTION=")[1].split()[0]
    arn = command.arn_of(found, name)
    assert failed_message(batches, arn)["detail"]["status"] == "ABORTED"
    endpoint.dead_until = 0
    wait_for(lambda: batches.map_run(arn)["status"] == "ABORTED")
    run_command(found, "--execution", name, "--redrive", "true")
    batch = batches.ended(arn)
    assert (batch.status, batch.keys, batch.errors) == ("SUCCEEDED", keys, {})


def test_the_table_of_results_has_a_partition_for_each_batch(batches, digits):
    batches.upload("table/", {"one.png": digits["00.png"]})
    batch = batches.run(s3_prefix="table/")
    database = batches.outputs["ResultsDatabaseName"]
    pages = batches.stack.client("glue").get_partitions(DatabaseName=database, TableName="results")
    locations = {row["Values"][0]: row["StorageDescriptor"]["Location"] for row in pages["Partitions"]}
    assert locations[batch.arn.rpartition(":")[2]] == batch.output["results"]
