"""The archive, unpacked as by SageMaker, and the requests and expected responses of every container."""

import base64
import http.client
import io
import json
import os
import socket
import subprocess
import sys
import tarfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

from inference import preprocess

ROOT = Path(__file__).parents[2]
SECONDS_TO_START = 60


@dataclass(frozen=True)
class Request:
    body: bytes
    content_type: str


def unavailable(problem):
    """Skip the test, or fail in CI, where everything must be available."""
    if os.environ.get("CI") == "true":
        pytest.fail(problem)
    pytest.skip(problem)


@pytest.fixture(scope="session")
def archive():
    """The path of model.tar.gz."""
    written = ROOT / ".local/package/archive.txt"
    if not written.exists():
        unavailable("needs a model's archive: make package-model")
    return ROOT / written.read_text().strip()


@pytest.fixture(scope="session")
def opt_ml(archive, tmp_path_factory):
    """A folder that replaces /opt/ml, with the unmodified archive unpacked in model/."""
    folder = tmp_path_factory.mktemp("opt_ml")
    with tarfile.open(archive) as opened:
        opened.extractall(folder / "model", filter="data")
    return folder


@pytest.fixture(scope="session")
def images():
    """Encoded images: digits from the test data as PNG, and larger images as JPEG."""
    digits = sorted((ROOT / ".local/data/digits/test").glob("*/*"))[::12]
    random = np.random.default_rng(0)
    coarse = [Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8)) for _ in range(4)]
    return [path.read_bytes() for path in digits] + [jpeg(image.resize((800, 600))) for image in coarse]


def jpeg(image):
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


@pytest.fixture(scope="session")
def requests(images):
    """{name: Request}: each image on its own, and all of them in JSON Lines, with one invalid line among them."""
    single = {f"image{number:03}": Request(image, "application/x-image") for number, image in enumerate(images)}
    lines = [json.dumps({"image": base64.b64encode(image).decode()}) for image in images]
    batch = "\n".join([*lines[:3], "no image", *lines[3:]])
    return single | {"batch": Request(batch.encode(), "application/jsonlines")}


@pytest.fixture(scope="session")
def probabilities(opt_ml, images):
    """The output of ONNX Runtime in this process: [images, labels]."""
    model = opt_ml / "model"
    metadata = json.loads((model / "metadata.json").read_text())
    size = metadata["input"]["height"], metadata["input"]["width"]
    session = onnxruntime.InferenceSession(model / "model.onnx", providers=["CPUExecutionProvider"])
    pixels = np.stack([preprocess(image, size) for image in images])
    return session.run(["probabilities"], {"pixels": pixels})[0]


@pytest.fixture(scope="session")
def check(opt_ml, probabilities):
    """A function that compares responses, {name: (status, content type, body)}, with `probabilities`."""
    labels = json.loads((opt_ml / "model/metadata.json").read_text())["labels"]

    def row(result):
        by_label = {each["label"]: each["probability"] for each in result["predictions"]}
        return [by_label[label] for label in labels]

    def check(responses):
        responses = dict(responses)
        status, content_type, body = responses.pop("batch")
        batch = [json.loads(line) for line in body.splitlines()]
        assert (status, content_type) == (200, "application/jsonlines")
        assert batch.pop(3)["error"]["code"] == "UnsupportedImageError"
        assert {response[:2] for response in responses.values()} == {(200, "application/json")}
        single = [json.loads(responses[name][2]) for name in sorted(responses)]
        for results in (single, batch):
            np.testing.assert_allclose([row(result) for result in results], probabilities, atol=1e-5, rtol=0)

    return check


def invoke(port, request):
    """Status, content type and body of the response from a server on this machine."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    connection.request("POST", "/invocations", request.body, {"Content-Type": request.content_type})
    response = connection.getresponse()
    return response.status, response.headers["Content-Type"], response.read().decode()


def wait_until_healthy(port, is_alive, log):
    deadline = time.monotonic() + SECONDS_TO_START
    while True:
        try:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/ping")
            if connection.getresponse().status == 200:
                return
        except OSError:
            pass
        assert is_alive() and time.monotonic() < deadline, log()
        time.sleep(0.1)


@pytest.fixture(scope="session")
def local_server(opt_ml, tmp_path_factory):
    """The port of endpoint/server.py, run as in the local stack."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    variables = {"SM_MODEL_DIR": str(opt_ml / "model"), "SAGEMAKER_BIND_TO_PORT": str(port)}
    variables["SAGEMAKER_MODEL_SERVER_WORKERS"] = "1"
    command = [sys.executable, ROOT / "endpoint/server.py", "serve", "--host", "127.0.0.1"]
    log = tmp_path_factory.mktemp("local_server") / "log"
    with log.open("wb") as output:
        process = subprocess.Popen(command, env=os.environ | variables, stdout=output, stderr=output)
    try:
        wait_until_healthy(port, lambda: process.poll() is None, log.read_text)
        yield port
    finally:
        process.terminate()
        process.wait(30)
