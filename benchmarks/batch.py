"""Batches of any size on the local stack: images per second, CPU time per image, memory of each process.

    .venv/bin/python -m benchmarks.batch 1000 10000 50000      scans of digits, each object under a key of its own
    .venv/bin/python -m benchmarks.batch --photographs 1000    JPEGs of 800 x 600, about 50 kB, for the cost of an image

Prints one JSON line per batch: its summary's counts and what the processes of the local stack used meanwhile.
"""

import argparse
import io
import json
import os
import random
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from PIL import Image

from local.batch import DIGITS, start
from local.command import report_errors
from local.emulator.processes import Stack
from local.target import Target, target

TICKS = os.sysconf("SC_CLK_TCK")
MEGABYTE = 1 << 20


def processes(stack: Stack) -> dict[int, str]:
    """The processes of the stack by ID: emulator, function or endpoint."""
    kinds = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            group = int((path / "stat").read_text().rpartition(")")[2].split()[2])
            command = (path / "cmdline").read_text()
        except OSError:  # it has exited
            continue
        if group == stack.pids["emulator"]:
            kinds[int(path.name)] = "function" if "awslambdaric" in command else "emulator"
        elif group == stack.pids["sagemaker"]:
            kinds[int(path.name)] = "endpoint"
    return kinds


def cpu_seconds(stack: Stack) -> dict[str, float]:
    """CPU time so far, by kind of process."""
    used: dict[str, float] = {}
    for pid, kind in processes(stack).items():
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        used[kind] = used.get(kind, 0) + (int(fields[11]) + int(fields[12])) / TICKS
    return used


def memory(stack: Stack) -> dict[str, list[int]]:
    """Resident memory of each process in MB, by kind."""
    found: dict[str, list[int]] = {}
    for pid, kind in processes(stack).items():
        try:
            pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            continue
        found.setdefault(kind, []).append(pages * os.sysconf("SC_PAGE_SIZE") // MEGABYTE)
    return found


def photographs(count: int) -> list[bytes]:
    """JPEGs of 800 x 600 of about 50 kB: blurred noise."""
    made = []
    for seed in range(count):
        noise = Image.frombytes("RGB", (40, 30), random.Random(seed).randbytes(3_600))
        buffer = io.BytesIO()
        noise.resize((800, 600), Image.Resampling.BICUBIC).save(buffer, "JPEG", quality=70)
        made.append(buffer.getvalue())
    return made


def upload(found: Target, prefix: str, count: int, images: list[bytes]) -> int:
    """Upload this many objects; returns the bytes stored."""
    s3, bucket = found.client("s3"), found.outputs["ImageBucketName"]

    def put(number: int) -> int:
        data = images[number % len(images)]
        s3.put_object(Bucket=bucket, Key=f"{prefix}{number:06}.png", Body=data)
        return len(data)

    with ThreadPoolExecutor(4) as pool:
        return sum(pool.map(put, range(count)))


def usage_of(found: Target, summary: dict[str, Any]) -> dict[str, float]:
    """What the batches used, added up from the Map Run's results."""
    s3 = found.client("s3")

    def read(key: str) -> str:
        return s3.get_object(Bucket=found.outputs["ResultsBucketName"], Key=key)["Body"].read().decode()

    manifest = json.loads(read(summary["manifest"].split("/", 3)[3]))
    outputs = [
        json.loads(line) for file in manifest["ResultFiles"]["SUCCEEDED"] for line in read(file["Key"]).splitlines()
    ]
    names = ("endpoint_requests", "endpoint_bytes", "endpoint_ms", "lambda_gb_seconds")
    return {name: round(sum(output.get(name, 0) for output in outputs), 3) for name in names}


def measure(found: Target, stack: Stack, count: int, images: list[bytes], size: int) -> dict[str, Any]:
    prefix = f"benchmark/{time.time_ns()}/"
    stored = upload(found, prefix, count, images)
    before, started = cpu_seconds(stack), time.monotonic()
    request = {"s3_bucket": found.outputs["ImageBucketName"], "s3_prefix": prefix, "batch_size": size}
    arn = start(found, request | {"max_concurrency": 2})
    peak: dict[str, list[int]] = {}
    ended = threading.Event()

    def watch_memory() -> None:
        while not ended.wait(0.5):
            now = memory(stack)
            if sum(map(sum, now.values())) > sum(map(sum, peak.values())):
                peak.clear()
                peak.update(now)

    watcher = threading.Thread(target=watch_memory)
    watcher.start()
    states = found.client("stepfunctions")
    while (execution := states.describe_execution(executionArn=arn))["status"] == "RUNNING":
        time.sleep(0.1)
    seconds = time.monotonic() - started
    ended.set()
    watcher.join()
    summary = json.loads(execution["output"])
    after = cpu_seconds(stack)
    return {
        "images": summary["images"],
        "seconds": round(seconds, 1),
        "images_per_second": round(count / seconds),
        "cpu_ms_per_image": {kind: round(1000 * (after[kind] - before.get(kind, 0)) / count, 2) for kind in after},
        "memory_mb": peak,
        "stored_mb": round(stored / MEGABYTE),
        "image_bytes": round(stored / count),
        "usage": usage_of(found, summary),
        "estimated_cost_usd": summary["estimated_cost_usd"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("counts", type=int, nargs="+")
    parser.add_argument("--photographs", action="store_true")
    parser.add_argument("--batch-size", type=int, default=200)
    options = parser.parse_args()
    digits = [path.read_bytes() for path in sorted(DIGITS.glob("test/*/*.png"))]
    with report_errors(), target() as found:
        assert found.local
        images = photographs(64) if options.photographs else digits
        measure(found, found.local, 200, images, 100)  # cold starts
        for count in options.counts:
            print(json.dumps(measure(found, found.local, count, images, options.batch_size)), flush=True)


if __name__ == "__main__":
    main()
