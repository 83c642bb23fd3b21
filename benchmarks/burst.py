"""Upload many digits at once to a local stack: outcomes, seconds and memory. python -m benchmarks.burst 500

Memory is the sum of the proportional set sizes (PSS) of the stack's processes, which counts shared pages once.
"""

import collections
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from local.command import LOCAL
from local.deployment import deploy, model_archive, upload_model
from local.emulator.processes import Stack, account_concurrency, start, stop
from local.executions import Watch
from monitoring import prediction_log

IMAGES = sorted((LOCAL / "data/digits/test").glob("*/*.png"))
SECONDS_AT_MOST = 1800


def memory(stack: Stack) -> tuple[int, int]:
    """The number of the stack's processes, and their memory in bytes. Each of them leads a process group."""
    sizes = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            group = int((process / "stat").read_text().rpartition(")")[2].split()[2])
            if group in stack.pids.values():
                lines = (process / "smaps_rollup").read_text().splitlines()
                sizes.append(next(int(line.split()[1]) for line in lines if line.startswith("Pss:")))
        except (FileNotFoundError, ProcessLookupError):  # it has just ended
            continue
    return len(sizes), sum(sizes) * 1024


def upload(stack: Stack, bucket: str, prefix: str, count: int) -> None:
    s3 = stack.client("s3")

    def put(number: int) -> None:
        path = IMAGES[number % len(IMAGES)]
        s3.upload_file(str(path), bucket, f"{prefix}{number:05}/{path.parent.name}.png")

    with ThreadPoolExecutor(10) as pool:  # as many as aws s3 cp --recursive
        collections.deque(pool.map(put, range(count)), maxlen=0)


def measure(stack: Stack, count: int) -> None:
    outputs = deploy(stack, EndpointType="serverless", ModelDataUrl=upload_model(stack, model_archive()))
    prefix = f"{outputs['UploadPrefix']}burst/"
    states, machine = stack.client("stepfunctions"), outputs["ClassifyImageStateMachineArn"]

    def executed() -> bool:
        pages = states.get_paginator("list_executions").paginate(stateMachineArn=machine)
        statuses = [execution["status"] for page in pages for execution in page["executions"]]
        return len(statuses) >= count and "RUNNING" not in statuses

    def recorded() -> bool:
        return len(prediction_log.from_log_group(stack.client("logs"), outputs["PredictionLogGroupName"])) >= count

    def seconds_until(condition: Callable[[], bool]) -> float:
        while not condition() and time.monotonic() - started < SECONDS_AT_MOST:
            time.sleep(2)
        return time.monotonic() - started

    peaks, ended = [memory(stack)], threading.Event()

    def sample() -> None:
        while not ended.wait(1):
            peaks.append(memory(stack))

    sampler = threading.Thread(target=sample)
    sampler.start()
    started = time.monotonic()
    try:
        upload(stack, outputs["ImageBucketName"], prefix, count)
        print(f"{count} images uploaded after {time.monotonic() - started:.0f} s", flush=True)
        seconds = seconds_until(executed)
        print(f"all {count} in the prediction log after {seconds_until(recorded):.0f} s: {recorded()}", flush=True)
    finally:
        ended.set()
        sampler.join()
    outcomes = collections.Counter(outcome.error or "accepted" for outcome in Watch(states, machine, prefix).ended())
    print(f"{outcomes.total()} outcomes after {seconds:.0f} s: {dict(outcomes)}")
    processes, size = map(max, zip(*peaks, strict=True))
    print(f"at most {account_concurrency()} functions at once; peak: {processes} processes, {size / 1e9:.2f} GB")


def main(count: int) -> None:
    with tempfile.TemporaryDirectory() as directory:
        stack = start(Path(directory) / "stack")
        try:
            measure(stack, count)
        finally:
            stop(stack)


if __name__ == "__main__":
    main(int(sys.argv[1]))
