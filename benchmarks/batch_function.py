"""CPU time of ClassifyBatch per image, by what it does, and the peak of its memory.

    .venv/bin/python -m benchmarks.batch_function              photographs of 50 kB
    .venv/bin/python -m benchmarks.batch_function --largest    bitmaps of 31 MB: RetrieveImage accepts 32 MB

The function runs in this process, under this Python; S3 and the endpoint are a stub in another one, which responds at
once. Of several rounds, the one with the least time counts: anything above is the machine's noise.
"""

import argparse
import functools
import io
import json
import multiprocessing
import os
import resource
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from PIL import Image

from benchmarks.batch import photographs

ROOT = Path(__file__).resolve().parent.parent
IMAGES, ROUNDS = 200, 7
PARTS = {  # ClassifyBatch's functions, each with those that it calls but for other parts' own
    "read": ("read",),
    "check": ("check",),
    "encode": ("invoke_with_lines",),
    "request": ("invoke_endpoint",),
    "decide": ("decide_line",),
    "write": ("count", "write"),
}
LINE = json.dumps({"predictions": [{"label": str(n), "probability": 0.91 if n == 7 else 0.01} for n in range(10)]})


class Stub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    images: list[bytes] = []  # noqa: RUF012

    def respond(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.respond(self.images[hash(self.path) % len(self.images)])

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.respond(b"")

    def do_POST(self) -> None:
        lines = self.rfile.read(int(self.headers["Content-Length"])).count(b"\n")
        self.respond(f"{LINE}\n".encode() * lines)

    def log_message(self, *_: Any) -> None:
        pass


def serve(port: Any, images: list[bytes]) -> None:
    Stub.images = images
    with ThreadingHTTPServer(("127.0.0.1", 0), Stub) as server:
        port.send(server.server_address[1])
        server.serve_forever()


class Stopwatch:
    """CPU time by part; a part's time is without that of the parts that it calls."""

    def __init__(self) -> None:
        self.seconds = defaultdict[str, float](float)
        self.lock = threading.Lock()
        self.of_thread = threading.local()

    def timed(self, part: str, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapper(*args: Any, **options: Any) -> Any:
            outer, self.of_thread.inner = getattr(self.of_thread, "inner", 0.0), 0.0
            started = time.thread_time()
            try:
                return function(*args, **options)
            finally:
                spent = time.thread_time() - started
                with self.lock:
                    self.seconds[part] += spent - self.of_thread.inner
                self.of_thread.inner = outer + spent

        return wrapper


def bitmap() -> bytes:
    buffer = io.BytesIO()
    Image.effect_noise((3300, 3300), 80).convert("RGB").save(buffer, "BMP")
    return buffer.getvalue()


def event() -> dict[str, Any]:
    made = json.loads((ROOT / "events/classify_batch.json").read_text())
    made["Items"] = [{"Key": f"images/{number}.jpg", "Size": 50_000} for number in range(IMAGES)]
    return made


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--largest", action="store_true")
    largest = parser.parse_args().largest
    images = [bitmap()] if largest else photographs()
    receiver, sender = multiprocessing.Pipe(False)
    server = multiprocessing.Process(target=serve, args=(sender, images), daemon=True)
    server.start()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{receiver.recv()}",
        "AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1",
        "POWERTOOLS_SERVICE_NAME": "image-classification", "POWERTOOLS_METRICS_NAMESPACE": "ImageClassification",
        "POWERTOOLS_TRACE_DISABLED": "true", "POWERTOOLS_LOG_LEVEL": "ERROR", "NO_PROXY": "127.0.0.1",
    }  # fmt: skip
    sys.path.insert(0, str(ROOT / "functions"))
    import classify_batch
    import retrieve_image

    stopwatch = Stopwatch()
    b64encode = stopwatch.timed("encode", retrieve_image.base64.b64encode)
    retrieve_image.base64 = SimpleNamespace(b64encode=b64encode)
    for part, names in PARTS.items():
        for name in names:
            setattr(classify_batch, name, stopwatch.timed(part, getattr(classify_batch, name)))
    context = SimpleNamespace(
        function_name="f", memory_limit_in_mb="1769", invoked_function_arn="arn", aws_request_id="request"
    )
    rounds = []
    for _ in range(1 if largest else ROUNDS):
        stopwatch.seconds.clear()
        started = time.process_time()
        output = classify_batch.lambda_handler(event(), context)
        total = time.process_time() - started
        assert output["accepted"] == IMAGES
        rounds.append((total, dict(stopwatch.seconds)))
    server.terminate()
    total, seconds = min(rounds, key=lambda each: each[0])
    seconds["the rest"] = total - sum(seconds.values())
    print(f"{sum(map(len, images)) // len(images):,} bytes, {IMAGES} images per batch, CPU milliseconds per image")
    for part in (*PARTS, "the rest"):
        print(f"  {part:10} {1000 * seconds[part] / IMAGES:.2f}")
    print(f"  {'all':10} {1000 * total / IMAGES:.2f}")
    print(f"peak of the process's memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f} MB")


if __name__ == "__main__":
    main()
