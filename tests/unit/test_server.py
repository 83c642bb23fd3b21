import base64
import contextlib
import http.client
import io
import json
import os
import select
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from starlette.testclient import TestClient

import inference
import server
from tiny_model import write_tiny_model

WHITE = {"predictions": [{"label": "light", "probability": 1.0}, {"label": "dark", "probability": 0.0}]}
OTHER_SIZE = json.dumps({"labels": ["dark", "light"], "input": {"height": 5, "width": 5}})  # than the model's


@pytest.fixture(scope="module")
def model_dir(tmp_path_factory):
    return write_tiny_model(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def client(model_dir):
    return client_of(inference.model_fn(model_dir))


@pytest.fixture(scope="module")
def white_png():
    file = io.BytesIO()
    Image.new("RGB", (6, 4), "white").save(file, "PNG")
    return file.getvalue()


def client_of(model):
    return TestClient(server.create_app(inference, model), raise_server_exceptions=False)


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
    assert error_of(post(client_of(model=None), white_png, "image/png")) == (500, "InternalError")


def test_ping_is_false_while_predictions_fail_and_true_again_when_they_work(model_dir, white_png):
    model = inference.model_fn(model_dir)
    changing = SimpleNamespace(session=model.session, labels=model.labels, size=model.size)
    client = client_of(changing)
    assert client.get("/ping").status_code == 200
    changing.session = None
    assert error_of(client.get("/ping")) == (503, "InternalError")
    changing.session = model.session
    assert client.get("/ping").status_code == 200


def test_a_request_leaves_one_line_with_sizes_and_time_and_nothing_of_the_image(client, white_png, capsys):
    response = post(client, white_png, "image/png")
    client.get("/ping?a=b")
    post(client, b"no image", "image/png")
    invocation, ping, refused = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [type(line.pop("ms")) for line in (invocation, ping, refused)] == [float] * 3
    received, sent = len(white_png), len(response.content)
    expected = {"method": "POST", "path": "/invocations", "status": 200, "received": received, "sent": sent}
    assert invocation == expected
    assert ping == {"method": "GET", "path": "/ping", "status": 200, "received": 0, "sent": 0}
    assert refused == expected | {"status": 400, "received": len(b"no image"), "sent": refused["sent"]}


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
    with serving(model_dir) as process:
        assert answer(process.connect(), white_png) == (200, WHITE)
    output = process.output()
    assert process.returncode() == 0
    assert '"path": "/invocations", "status": 200' in output
    assert "IHDR" not in output
    assert "Traceback" not in output


# Answers when a file is there, and says with another that it began.
SLOW_INFERENCE = """
import pathlib, time, uuid
folder = pathlib.Path(__file__).parent

class UnsupportedContentTypeError(ValueError): pass
class UnsupportedImageError(ValueError): pass

def model_fn(model_dir): return None
def input_fn(body, content_type): return body
def output_fn(prediction, accept): return prediction, "text/plain"
def predict_fn(body, model):
    if body == b"slow":
        (folder / f"begun-{uuid.uuid4()}").touch()
        while not (folder / "go").exists():
            time.sleep(0.01)
    return "done"
"""


@pytest.fixture
def slow_model_dir(tmp_path):
    code = tmp_path / "code"
    code.mkdir()
    (code / "inference.py").write_text(SLOW_INFERENCE)
    return tmp_path


def begun(model_dir):
    return len(list((model_dir / "code").glob("begun-*")))


def test_sigterm_lets_it_finish_what_it_has(slow_model_dir):
    with serving(slow_model_dir) as process:
        connection = process.connect()
        connection.request("POST", "/invocations", b"slow")
        eventually(lambda: begun(slow_model_dir))
        process.terminate()
        eventually(lambda: not process.is_listening())
        (slow_model_dir / "code/go").touch()
        assert connection.getresponse().read() == b"done"
    assert process.returncode() == 0


def test_more_requests_than_it_takes_are_503_at_once_and_ping_is_answered_all_the_same(slow_model_dir):
    with serving(slow_model_dir) as process:
        connections = [process.connect() for _ in range(server.MAX_REQUESTS + 1)]
        for connection in connections:
            connection.request("POST", "/invocations", b"slow")
        (refused,), _, _ = select.select([connection.sock for connection in connections], [], [], 30)
        taken = [connection for connection in connections if connection.sock != refused]
        (one_too_many,) = set(connections) - set(taken)
        assert one_too_many.getresponse().status == 503
        message = f"{server.MAX_REQUESTS} requests are in work or waiting"
        refusal = (503, {"error": {"code": "OverloadedError", "message": message}})
        assert answer(process.connect(), bytes(server.MAX_BODY_BYTES)) == refusal
        assert begun(slow_model_dir) == server.THREADS
        assert process.get("/ping") == 200
        (slow_model_dir / "code/go").touch()
        assert {connection.getresponse().read() for connection in taken} == {b"done"}
        assert answer(process.connect(), b"slow") == (200, "done")


def test_a_stop_writes_the_captured_events_that_wait(model_dir, white_png, tmp_path):
    with serving(model_dir, DATA_CAPTURE_DIR=str(tmp_path)) as process:
        answer(process.connect(), white_png)
    (file,) = tmp_path.rglob("*.jsonl")
    event = json.loads(file.read_text())
    assert event["captureData"]["endpointInput"]["data"] == base64.b64encode(white_png).decode()
    assert event["captureData"]["endpointOutput"]["data"] == json.dumps(WHITE)


@pytest.mark.parametrize("file, content", [("model.onnx", "no model"), ("metadata.json", OTHER_SIZE)])
def test_a_model_that_does_not_work_never_listens(tmp_path, file, content):
    (write_tiny_model(tmp_path) / file).write_text(content)
    command = [sys.executable, server.__file__, "--host", "127.0.0.1"]
    process = subprocess.run(
        command, env=os.environ | {"SM_MODEL_DIR": str(tmp_path)}, capture_output=True, text=True, timeout=30
    )
    assert process.returncode != 0
    assert "onnxruntime" in process.stderr


class Process:
    """The server as SageMaker starts it."""

    def __init__(self, model_dir, variables):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        environment = os.environ | {"SM_MODEL_DIR": str(model_dir), "SAGEMAKER_BIND_TO_PORT": str(self.port)}
        command = [sys.executable, server.__file__, "serve", "--host", "127.0.0.1"]
        self.process = subprocess.Popen(
            command, env=environment | variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
        )
        self.terminate, self.kill = self.process.terminate, self.process.kill

    def connect(self):
        return http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)

    def get(self, path):
        connection = self.connect()
        connection.request("GET", path)
        return connection.getresponse().status

    def is_listening(self):
        try:
            self.connect().connect()
        except ConnectionRefusedError:
            return False
        return True

    def returncode(self):
        return self.process.wait(30)

    def output(self):
        return self.process.stdout.read()


@contextlib.contextmanager
def serving(model_dir, **variables):
    """A process that listens; SIGTERM ends it."""
    process = Process(model_dir, variables)
    try:
        eventually(lambda: process.process.poll() is not None or process.is_listening())
        yield process
        process.terminate()
        process.returncode()
    finally:
        process.kill()
        process.returncode()


def answer(connection, body):
    """Status and content of the answer to a PNG."""
    connection.request("POST", "/invocations", body, {"Content-Type": "image/png"})
    response = connection.getresponse()
    content = response.read().decode()
    return response.status, json.loads(content) if content.startswith("{") else content


def eventually(probe, seconds=20):
    deadline = time.monotonic() + seconds
    while not (found := probe()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found
