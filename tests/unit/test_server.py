import base64
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from PIL import Image
from starlette.testclient import TestClient

import inference
import server
from tiny_model import write_tiny_model

WHITE = {"predictions": [{"label": "light", "probability": 1.0}, {"label": "dark", "probability": 0.0}]}


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def client(model_dir):
    app = server.create_app(inference, inference.model_fn(model_dir))
    return TestClient(app, raise_server_exceptions=False)


@pytest.fixture(scope="module")
def white_png():
    file = io.BytesIO()
    Image.new("RGB", (6, 4), "white").save(file, "PNG")
    return file.getvalue()


def post(client, body, content_type):
    return client.post("/invocations", content=body, headers={"content-type": content_type})


def error_of(response):
    return response.status_code, response.json()["error"]["code"]


def test_ping_is_well_and_an_image_is_answered(client, white_png):
    assert client.get("/ping").status_code == 200
    response = post(client, white_png, "image/png")
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert response.json() == WHITE


def test_json_lines_answer_as_single_images_do(client, white_png):
    line = json.dumps({"image": base64.b64encode(white_png).decode()})
    response = post(client, f"{line}\n{line}\n", "application/jsonlines")
    assert (response.status_code, response.headers["content-type"]) == (200, "application/jsonlines")
    assert [json.loads(answer) for answer in response.text.splitlines()] == [WHITE, WHITE]


def test_an_unknown_type_is_415_and_a_broken_image_400_with_the_reason(client):
    assert error_of(post(client, b"a,b", "text/csv")) == (415, "UnsupportedContentTypeError")
    broken = post(client, b"no image", "image/png")
    assert error_of(broken) == (400, "UnsupportedImageError")
    assert "not a readable image" in broken.json()["error"]["message"]


def test_a_body_over_the_limit_is_413_and_one_at_the_limit_is_read(client):
    assert error_of(post(client, bytes(server.MAX_BODY_BYTES + 1), "image/png")) == (413, "PayloadTooLargeError")
    assert error_of(post(client, bytes(server.MAX_BODY_BYTES), "image/png")) == (400, "UnsupportedImageError")


def test_errors_of_any_other_kind_are_json_too(client, model_dir, white_png):
    assert error_of(client.get("/nowhere")) == (404, "HTTPError")
    assert error_of(client.get("/invocations")) == (405, "HTTPError")
    broken_app = server.create_app(inference, model=None)
    broken_client = TestClient(broken_app, raise_server_exceptions=False)
    assert error_of(post(broken_client, white_png, "image/png")) == (500, "InternalError")


def test_the_code_that_comes_with_the_model_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path.copy())
    code = tmp_path / "code"
    code.mkdir()
    (code / "sibling.py").write_text("ANSWER = 42")
    (code / "inference.py").write_text("from sibling import ANSWER")
    assert server.load_inference(tmp_path).ANSWER == 42


def test_submit_directory_and_program_are_honoured_where_they_exist(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setenv("SAGEMAKER_PROGRAM", "own.py")
    monkeypatch.setenv("SAGEMAKER_SUBMIT_DIRECTORY", str(tmp_path))
    (tmp_path / "own.py").write_text("ANSWER = 'own'")
    assert server.load_inference(tmp_path / "model").ANSWER == "own"
    monkeypatch.setenv("SAGEMAKER_SUBMIT_DIRECTORY", str(tmp_path / "elsewhere"))
    assert Path(server.load_inference(tmp_path / "model").__file__) == Path(inference.__file__)


def test_the_process_serves_as_sagemaker_starts_it_and_stops_on_sigterm(model_dir, white_png):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = os.environ | {"SM_MODEL_DIR": str(model_dir), "SAGEMAKER_BIND_TO_PORT": str(port)}
    command = [sys.executable, server.__file__, "serve", "--host", "127.0.0.1"]
    process = subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", process)
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", white_png, {"Content-Type": "image/png"}
        )
        with urllib.request.urlopen(request, timeout=10) as response:
            assert json.load(response) == WHITE
    finally:
        process.send_signal(signal.SIGTERM)
        output = "".join(process.communicate(timeout=30))
    assert process.returncode in (0, -signal.SIGTERM)
    assert '"POST /invocations HTTP/1.1" 200' in output
    assert "IHDR" not in output


def test_a_model_that_does_not_work_never_listens(tmp_path):
    (write_tiny_model(tmp_path) / "model.onnx").write_bytes(b"no model")
    command = [sys.executable, server.__file__, "--host", "127.0.0.1"]
    process = subprocess.run(
        command, env=os.environ | {"SM_MODEL_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=30
    )
    assert process.returncode != 0
    assert "model.onnx" in process.stderr


def wait_for(url, process, seconds=20):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with urllib.request.urlopen(url, timeout=1):
                return
        except (urllib.error.URLError, TimeoutError):
            time.sleep(0.05)
    raise AssertionError(f"{url} did not answer")
