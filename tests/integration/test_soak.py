"""Many executions while faults are injected: each object version has one outcome, and no process grows.

make soak [EXECUTIONS=5000]; in make test the size is small.
"""

import contextlib
import json
import os
import random
import signal
import socket
import threading
import time
from collections import Counter
from pathlib import Path

import pytest

from local.redrive import Redrive
from monitoring import prediction_log
from test_delivery import queue_of
from workflow import DIGITS

EXECUTIONS = int(os.environ.get("EXECUTIONS") or 60)
IN_FLIGHT = 24
SECONDS_FOR_ONE = 120
OUTAGE = 2  # seconds; 40 at the stack's shortened waits
MAX_GROWTH_MB, MAX_DESCRIPTORS = 60, 40  # of a process, from a quarter of the run to its end
DESCRIPTORS_OF_A_FUNCTION = 10  # in the emulator: its pipes and its Runtime API
BAD = {"text": b"This is no image.", "empty": b"", "truncated": None}


def memory_and_descriptors(stack):
    """{process: (MB resident, open descriptors)} of the stack's processes, model servers and functions."""
    measured = {}
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError):
            if os.getpgid(int(path.name)) in stack.pids.values():
                pages = int((path / "statm").read_text().split()[1])
                command = (path / "cmdline").read_text().split("\0")
                name = next((word for word in command if word.startswith(("local.", "endpoint/"))), "a function")
                measured[f"{name} {path.name}"] = (pages * 4096 / 1e6, len(list((path / "fd").iterdir())))
    return measured


def kill_model_server(stack):
    for name in memory_and_descriptors(stack):
        if name.startswith("endpoint/"):
            os.kill(int(name.split()[1]), signal.SIGKILL)


def throttle(workflow, name):
    """One invocation at a time for a while."""
    functions, function = workflow.stack.client("lambda"), workflow.outputs[f"{name}FunctionName"]
    functions.put_function_concurrency(FunctionName=function, ReservedConcurrentExecutions=1)
    time.sleep(OUTAGE)
    functions.delete_function_concurrency(FunctionName=function)


def outage(endpoint):
    with endpoint.outage():
        time.sleep(OUTAGE)


def send_stray_datagrams(stack):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        for datagram in (b"\xff", b"\n[]", b"x\n{"):
            sender.sendto(datagram, ("127.0.0.1", stack.ports["xray"]))


def plant(endpoint, chance):
    """Errors that are retried, and responses that fail an execution until it is redriven."""
    kind = chance.choice([(500, ""), (503, "ServiceUnavailable"), (429, "ThrottlingException"), (200, "")])
    endpoint.respond(b"not the JSON of predictions", status=kind[0], error=kind[1], times=2)


class Soak:
    """Uploads images and collects how their executions end."""

    def __init__(self, workflow, ends):
        self.workflow, self.ends = workflow, ends
        self.expected: dict[str, bool] = {}  # whether the image of a key can be classified
        self.ended: dict[str, set[str]] = {}  # the executions of each key
        self.last_progress = time.monotonic()

    def upload(self, key, data, good, again):
        self.expected[key] = good
        stored = self.workflow.s3.put_object(Bucket=self.workflow.bucket, Key=key, Body=data)
        if again:  # the same event a second time
            uploaded = {"key": key, "size": len(data), "version-id": stored["VersionId"]}
            event = {"source": "aws.s3", "detail": {"bucket": {"name": self.workflow.bucket}, "object": uploaded}}
            functions, name = self.workflow.stack.client("lambda"), self.workflow.outputs["StartExecutionFunctionName"]
            payload = json.dumps(event)
            functions.invoke(FunctionName=name, Qualifier="live", InvocationType="Event", Payload=payload)

    def receive(self):
        response = self.workflow.sqs.receive_message(QueueUrl=self.ends, MaxNumberOfMessages=10, WaitTimeSeconds=1)
        for message in response.get("Messages", []):
            detail = json.loads(message["Body"])["detail"]
            key = json.loads(detail["input"])["s3_key"]
            self.ended.setdefault(key, set()).add(detail["executionArn"])
            self.workflow.sqs.delete_message(QueueUrl=self.ends, ReceiptHandle=message["ReceiptHandle"])
            self.last_progress = time.monotonic()
        assert time.monotonic() - self.last_progress < SECONDS_FOR_ONE, "no execution has ended for a long time"

    def wait_until(self, in_flight):
        while len(self.expected) - len(self.ended) > in_flight:
            self.receive()


@pytest.fixture
def ends(workflow):
    pattern = {"source": ["aws.states"], "detail": {"status": ["SUCCEEDED", "FAILED", "TIMED_OUT", "ABORTED"]}}
    with queue_of(workflow, "soak-ends", pattern) as queue:
        yield queue


def test_each_object_version_has_one_outcome_whatever_fails(workflow, endpoint_proxy, failure_queue, ends, capsys):
    chance = random.Random(0)
    files = sorted((DIGITS / "test").glob("*/*.png"))
    faults = [
        lambda: outage(endpoint_proxy),
        lambda: throttle(workflow, "ClassifyImage"),
        lambda: kill_model_server(workflow.stack),
        lambda: send_stray_datagrams(workflow.stack),
        lambda: throttle(workflow, "RetrieveImage"),
        lambda: plant(endpoint_proxy, chance),
    ]
    soak, threads, before, started = Soak(workflow, ends), [], {}, time.monotonic()
    for number in range(EXECUTIONS):
        kind = chance.choice(list(BAD)) if number % 20 == 7 else "good"
        image = files[number % len(files)].read_bytes()
        data = {**BAD, "truncated": image[:-40], "good": image}[kind]
        soak.upload(f"uploads/soak/{number}.png", data, kind == "good", again=number % 5 == 0)
        if number % 10 == 5:
            threads.append(threading.Thread(target=faults[number // 10 % len(faults)]))
            threads[-1].start()
        soak.wait_until(IN_FLIGHT)
        if number == EXECUTIONS // 4:
            before = memory_and_descriptors(workflow.stack)
    soak.wait_until(0)
    for thread in threads:
        thread.join()
    endpoint_proxy.planted = []
    seconds = time.monotonic() - started
    redriven, left = redrive_until_only_bad_images_fail(workflow, soak)
    report(capsys, soak, seconds, redriven, before, memory_and_descriptors(workflow.stack))

    # A bad image fails again, perhaps while the command still runs; nothing else is left.
    assert set(left) <= {"failed again: UnsupportedImageError"}
    first = {key: {arn for arn in arns if "-redrive-" not in arn} for key, arns in soak.ended.items()}
    assert {key: len(arns) for key, arns in first.items()} == dict.fromkeys(soak.expected, 1)
    lines = [line for line in lines_of(workflow) if line["s3_key"] in soak.expected]
    assert Counter(line["s3_key"] for line in lines) == dict.fromkeys(soak.expected, 1)
    wrong = [line for line in lines if (line["outcome"] != "error") != soak.expected[line["s3_key"]]]
    assert wrong == []
    assert_nothing_grew(before, memory_and_descriptors(workflow.stack))


def lines_of(workflow):
    logs = workflow.stack.client("logs")
    return prediction_log.from_log_group(logs, workflow.outputs["PredictionLogGroupName"])


def redrive_until_only_bad_images_fail(workflow, soak):
    """Redrive once what failed, and wait until every good image has an outcome."""
    time.sleep(2)  # until the last events have arrived
    redriven, left = Redrive(workflow.stack.client, workflow.outputs).run()
    deadline = time.monotonic() + SECONDS_FOR_ONE
    while time.monotonic() < deadline:
        done = {line["s3_key"] for line in lines_of(workflow) if line["outcome"] != "error"}
        if done >= {key for key, good in soak.expected.items() if good}:
            break
        time.sleep(1)
    return redriven, left


def report(capsys, soak, seconds, redriven, before, after):
    with capsys.disabled():
        print(f"\n{EXECUTIONS} executions in {seconds:.0f} s, {redriven['executions']} redriven")
        for name in sorted(before.keys() & after.keys()):
            (megabytes, files), (megabytes_after, files_after) = before[name], after[name]
            print(f"  {name}: {megabytes:.0f} -> {megabytes_after:.0f} MB, {files} -> {files_after} descriptors")


def assert_nothing_grew(before, after):
    """But for the emulator, which keeps every object, execution and log line in its memory."""
    more_functions = max(0, number_of_functions(after) - number_of_functions(before))
    for name in before.keys() & after.keys():
        (megabytes, files), (megabytes_after, files_after) = before[name], after[name]
        is_emulator = name.startswith("local.emulator.start")
        descriptors = MAX_DESCRIPTORS + (DESCRIPTORS_OF_A_FUNCTION * more_functions if is_emulator else 0)
        assert files_after - files < descriptors, name
        assert megabytes_after - megabytes < MAX_GROWTH_MB or is_emulator, name


def number_of_functions(measured):
    return sum(name.startswith("a function") and files > 0 for name, (_, files) in measured.items())
