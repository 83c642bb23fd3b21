"""CPU time of ClassifyBatch per image, without the services: .venv/bin/python benchmarks/batch_function.py

The function runs in this process, under this Python; S3 and the endpoint are a stub in another one, which responds at
once. `read` is the same batch whose objects are broken, so that nothing is decoded or sent. The last line is JSON,
for benchmarks/batch.json, from which benchmarks/scale.py computes costs.
"""

import base64
import json
import multiprocessing
import os
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
IMAGES, ROUNDS = 200, 7
LINE = json.dumps({"predictions": [{"label": str(n), "probability": 0.91 if n == 7 else 0.01} for n in range(10)]})


class Stub(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    objects: dict[str, bytes] = {}  # noqa: RUF012

    def respond(self, body: bytes) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.respond(self.objects["broken" if "broken" in self.path else "image"])

    def do_PUT(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.respond(b"")

    def do_POST(self) -> None:
        lines = self.rfile.read(int(self.headers["Content-Length"])).count(b"\n")
        self.respond(f"{LINE}\n".encode() * lines)

    def log_message(self, *_: Any) -> None:
        pass


def serve(port: Any, image: bytes) -> None:
    Stub.objects = {"image": image, "broken": b"x" * len(image)}
    with ThreadingHTTPServer(("127.0.0.1", 0), Stub) as server:
        port.send(server.server_address[1])
        server.serve_forever()


def event(folder: str) -> dict[str, Any]:
    made = json.loads((ROOT / "events/classify_batch.json").read_text())
    made["Items"] = [{"Key": f"{folder}/{number}.jpg", "Size": 50_000} for number in range(IMAGES)]
    return made


def main() -> None:
    from benchmarks.batch import photographs

    (image,) = photographs(1)
    receiver, sender = multiprocessing.Pipe(False)
    server = multiprocessing.Process(target=serve, args=(sender, image), daemon=True)
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

    context = SimpleNamespace(
        function_name="f", memory_limit_in_mb="1769", invoked_function_arn="arn", aws_request_id="request"
    )

    def cpu(folder: str) -> float:
        """The least CPU milliseconds per image of the rounds: anything above is the machine's noise."""
        times = []
        for _ in range(ROUNDS):
            started = time.process_time()
            output = classify_batch.lambda_handler(event(folder), context)
            times.append((time.process_time() - started) * 1000 / IMAGES)
            assert output["accepted"] == (0 if folder == "broken" else IMAGES)
        return min(times)

    whole, read = cpu("images"), cpu("broken")
    started = time.process_time()
    for _ in range(IMAGES):
        retrieve_image.fit(image, "s3://b/k")
    check = (time.process_time() - started) * 1000 / IMAGES
    print(f"{len(image):,} bytes, {IMAGES} images per batch, CPU milliseconds per image")
    print(f"  read, and write a line      {read:.2f}")
    print(f"  check (decode) and base64   {check:.2f}  of which base64 {base64_ms(image):.2f}")
    print(f"  all, with the requests to the endpoint, parsing and deciding   {whole:.2f}")
    output = classify_batch.lambda_handler(event("images"), context)
    counted = {"image_bytes": len(image), "function_ms": round(whole, 2), "read_ms": round(read, 2)}
    counted |= {"check_ms": round(check, 2), "endpoint_bytes": round(output["endpoint_bytes"] / IMAGES)}
    print(json.dumps(counted))
    server.terminate()


def base64_ms(image: bytes) -> float:
    started = time.process_time()
    for _ in range(1000):
        base64.b64encode(image).decode()
    return time.process_time() - started


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
