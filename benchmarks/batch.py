"""Batches of any size on the local stack: images per second, CPU time per image, memory of each process.

    .venv/bin/python -m benchmarks.batch 1000 10000 50000             photographs of about 50 kB
    .venv/bin/python -m benchmarks.batch --digits 1000 10000 50000    scans of digits, of about 125 bytes

Every image is an object of its own. Prints one JSON line per batch, then a fit of the CPU time over the numbers of
images: seconds = fixed + per image x images. At 50 kB, 50,000 objects are 2.5 GB in the emulator's memory.
"""

import argparse
import io
import json
import os
import random
import statistics
import threading
import time
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image
from sklearn.datasets import load_sample_images

from local.batch import DIGITS, start
from local.command import report_errors
from local.emulator.processes import Stack
from local.target import Target, target

TICKS = os.sysconf("SC_CLK_TCK")
MEGABYTE = 1 << 20
PHOTOGRAPHS = 64  # different ones
PHOTOGRAPH_BYTES = 50_000
TINY = 1e-9  # a threshold that accepts every image: the model knows digits only


def processes(stack: Stack) -> Iterator[tuple[Path, str]]:
    """The stack's processes in /proc with their kind: emulator, function, sagemaker (its emulated API) or endpoint."""
    leaders = {stack.pids[name]: name for name in ("emulator", "sagemaker")}
    children = {"emulator": "function", "sagemaker": "endpoint"}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            group = int(fields(path)[2])
        except OSError:  # it has exited
            continue
        if group in leaders:
            yield path, leaders[group] if int(path.name) == group else children[leaders[group]]


def fields(path: Path) -> list[str]:
    """The fields of /proc/PID/stat from the third: state, ppid, pgrp ..."""
    return (path / "stat").read_text().rpartition(")")[2].split()


def cpu_seconds(stack: Stack) -> defaultdict[str, float]:
    """CPU time so far, by kind of process. The emulator's children are the functions."""
    used = defaultdict[str, float](float)
    for path, kind in processes(stack):
        user, system, of_ended_children, system_of_them = map(int, fields(path)[11:15])
        used[kind] += (user + system) / TICKS
        if kind == "emulator":
            used["function"] += (of_ended_children + system_of_them) / TICKS
    return used


def memory(stack: Stack) -> dict[str, list[int]]:
    """Resident memory of each process in MB, by kind. Pages that processes share count for each of them."""
    found: dict[str, list[int]] = {}
    for path, kind in processes(stack):
        pages = int((path / "statm").read_text().split()[1])
        found.setdefault(kind, []).append(pages * os.sysconf("SC_PAGE_SIZE") // MEGABYTE)
    return found


def photographs() -> list[bytes]:
    """JPEGs of 800 x 600, of at most PHOTOGRAPH_BYTES: parts of scikit-learn's two photographs."""
    sources = [Image.fromarray(pixels) for pixels in load_sample_images().images]
    generator = random.Random(0)
    made = []
    for number in range(PHOTOGRAPHS):
        source = sources[number % len(sources)]
        width = generator.randint(320, 560)
        height = width * 3 // 4
        left, top = generator.randint(0, source.width - width), generator.randint(0, source.height - height)
        part = source.crop((left, top, left + width, top + height)).resize((800, 600), Image.Resampling.BICUBIC)
        for quality in range(96, 8, -2):
            buffer = io.BytesIO()
            part.save(buffer, "JPEG", quality=quality)
            if buffer.tell() <= PHOTOGRAPH_BYTES:
                break
        made.append(buffer.getvalue())
    return made


def upload(found: Target, prefix: str, count: int, images: list[bytes]) -> int:
    """Upload this many objects; returns the bytes stored."""
    s3, bucket = found.client("s3"), found.outputs["ImageBucketName"]

    def put(number: int) -> int:
        data = images[number % len(images)]
        s3.put_object(Bucket=bucket, Key=f"{prefix}{number:06}", Body=data)
        return len(data)

    with ThreadPoolExecutor(4) as pool:
        return sum(pool.map(put, range(count)))


def delete(found: Target, prefix: str) -> None:
    """Delete every version: the bucket keeps what is only deleted."""
    s3, bucket = found.client("s3"), found.outputs["ImageBucketName"]
    for page in s3.get_paginator("list_object_versions").paginate(Bucket=bucket, Prefix=prefix):
        versions = [{"Key": row["Key"], "VersionId": row["VersionId"]} for row in page["Versions"]]
        s3.delete_objects(Bucket=bucket, Delete={"Objects": versions, "Quiet": True})


def run(found: Target, prefix: str, **options: Any) -> dict[str, Any]:
    """Classify what is under the prefix; returns the summary."""
    request = {"s3_bucket": found.outputs["ImageBucketName"], "s3_prefix": prefix, "threshold": TINY, **options}
    arn = start(found, request)
    states = found.client("stepfunctions")
    while (execution := states.describe_execution(executionArn=arn))["status"] == "RUNNING":
        time.sleep(0.1)
    return json.loads(execution["output"])


def watched(stack: Stack, ended: threading.Event, peak: dict[str, list[int]]) -> None:
    """Keep in `peak` the memory of the processes when they had most."""
    while not ended.wait(0.5):
        now = memory(stack)
        if sum(map(sum, now.values())) > sum(map(sum, peak.values())):
            peak.clear()
            peak.update(now)


def measure(found: Target, stack: Stack, count: int, images: list[bytes], **options: Any) -> dict[str, Any]:
    prefix = f"benchmark/{time.time_ns()}/"
    stored = upload(found, prefix, count, images)
    peak: dict[str, list[int]] = {}
    ended = threading.Event()
    watcher = threading.Thread(target=watched, args=(stack, ended, peak))
    watcher.start()
    before, started = cpu_seconds(stack), time.monotonic()
    summary = run(found, prefix, **options)
    seconds = time.monotonic() - started
    used = {kind: used - before[kind] for kind, used in cpu_seconds(stack).items()}
    ended.set()
    watcher.join()
    delete(found, prefix)
    assert summary["accepted"] == count
    without_objects = sum(peak["emulator"]) + sum(peak["function"]) - stored // MEGABYTE
    return {
        "images": count,
        "image_bytes": stored // count,
        "seconds": round(seconds, 1),
        "images_per_second": round(count / seconds),
        "cpu_seconds": round(sum(used.values()), 2),
        "cpu_ms_per_image": {kind: round(1000 * value / count, 2) for kind, value in used.items()},
        "memory_mb": peak,
        "emulator_and_functions_without_objects_mb": without_objects,
    }


def fit(measured: list[dict[str, Any]]) -> dict[str, float]:
    """CPU seconds = fixed + per image x images; and the most images' time per image as a share of the fewest's."""
    first, *_, last = sorted(measured, key=lambda each: each["images"])
    line = statistics.linear_regression(*([each[name] for each in measured] for name in ("images", "cpu_seconds")))
    per_image = [each["cpu_seconds"] / each["images"] for each in (first, last)]
    return {
        "fixed_seconds": round(line.intercept, 2),
        "ms_per_image": round(1000 * line.slope, 2),
        f"{last['images']}_to_{first['images']}": round(per_image[1] / per_image[0], 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", type=int, nargs="+")
    parser.add_argument("--digits", action="store_true")
    options = parser.parse_args()
    images = [path.read_bytes() for path in sorted(DIGITS.glob("test/*/*.png"))] if options.digits else photographs()
    measured = []
    with report_errors(), target() as found:
        assert found.local
        measure(found, found.local, 400, images, max_concurrency=2)  # cold starts
        for count in options.counts:
            measured.append(measure(found, found.local, count, images, max_concurrency=2))
            print(json.dumps(measured[-1]), flush=True)
    if len(measured) > 1:
        print(json.dumps(fit(measured)))


if __name__ == "__main__":
    main()
