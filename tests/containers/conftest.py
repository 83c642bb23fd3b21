"""The archive as SageMaker unpacks it, requests to it, and the answers that every container must give."""

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
    """Skip, or fail where all is expected to be there."""
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
    """A folder in the place of /opt/ml, with the archive unpacked unchanged in model/."""
    folder = tmp_path_factory.mktemp("opt_ml")
    with tarfile.open(archive) as opened:
        opened.extractall(folder / "model", filter="data")
    return folder


@pytest.fixture(scope="session")
def images():
    """Pictures as bytes: digits of the test data in PNG, and larger ones in JPEG."""
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
    """{name: Request}: each image by itself, and all of them in JSON Lines, with a line that is none among them."""
    single = {f"image{number:03}": Request(image, "application/x-image") for number, image in enumerate(images)}
    lines = [json.dumps({"image": base64.b64encode(image).decode()}) for image in images]
    batch = "\n".join([*lines[:3], "no image", *lines[3:]])
    return single | {"batch": Request(batch.encode(), "application/jsonlines")}


@pytest.fixture(scope="session")
def probabilities(opt_ml, images):
    """What ONNX Runtime says in this process: [images, labels]."""
    model = opt_ml / "model"
    metadata = json.loads((model / "metadata.json").read_text())
    size = metadata["input"]["height"], metadata["input"]["width"]
    session = onnxruntime.InferenceSession(model / "model.onnx", providers=["CPUExecutionProvider"])
    pixels = np.stack([preprocess(image, size) for image in images])
    return session.run(["probabilities"], {"pixels": pixels})[0]


@pytest.fixture(scope="session")
def check(opt_ml, probabilities):
    """A function that asserts that {name: (status, content type, body)} has the probabilities of `requests`."""
    labels = json.loads((opt_ml / "model/metadata.json").read_text())["labels"]

    def row(answer):
        by_label = {each["label"]: each["probability"] for each in answer["predictions"]}
        return [by_label[label] for label in labels]

    def check(answers):
        answers = dict(answers)
        status, content_type, body = answers.pop("batch")
        batch = [json.loads(line) for line in body.splitlines()]
        assert (status, content_type) == (200, "application/jsonlines")
        assert batch.pop(3)["error"]["code"] == "UnsupportedImageError"
        assert {answer[:2] for answer in answers.values()} == {(200, "application/json")}
        single = [json.loads(answers[name][2]) for name in sorted(answers)]
        for rows in (single, batch):
            np.testing.assert_allclose([row(answer) for answer in rows], probabilities, atol=1e-5, rtol=0)

    return check


def ask(port, request):
    """Status, content type and body of the answer of a server on this machine."""
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
    """The port of endpoint/server.py as the local stack runs it."""
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
