import asyncio
import base64
import contextlib
import http.client
import io
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image
from starlette.testclient import TestClient
from uvicorn.config import STARTUP_FAILURE

import inference
import server
from tiny_model import write_tiny_model

WHITE = {"predictions": [{"label": "light", "probability": 1.0}, {"label": "dark", "probability": 0.0}]}
WRONG_SIZE = json.dumps({"labels": ["dark", "light"], "input": {"height": 5, "width": 5}})  # not the model's


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


def test_ping_is_200_and_an_image_is_classified(client, white_png):
    assert client.get("/ping").status_code == 200
    response = post(client, white_png, "image/png")
    assert (response.status_code, response.headers["content-type"]) == (200, "application/json")
    assert response.json() == WHITE


def test_json_lines_have_the_same_predictions_as_single_images(client, white_png):
    line = json.dumps({"image": base64.b64encode(white_png).decode()})
    response = post(client, f"{line}\n{line}\n", "application/jsonlines")
    assert (response.status_code, response.headers["content-type"]) == (200, "application/jsonlines")
    assert [json.loads(line) for line in response.text.splitlines()] == [WHITE, WHITE]


def test_an_unknown_type_is_415_and_a_broken_image_400_with_the_reason(client):
    assert error_of(post(client, b"a,b", "text/csv")) == (415, "UnsupportedContentTypeError")
    broken = post(client, b"no image", "image/png")
    assert error_of(broken) == (400, "UnsupportedImageError")
    assert broken.json()["error"]["message"].startswith("the file is text: save it as JPEG")


def test_a_body_over_the_limit_is_413_and_one_at_the_limit_is_accepted(client):
    assert error_of(post(client, bytes(server.MAX_BODY_BYTES + 1), "image/png")) == (413, "PayloadTooLargeError")
    assert error_of(post(client, bytes(server.MAX_BODY_BYTES), "image/png")) == (400, "UnsupportedImageError")


def test_a_client_that_disconnects_while_sending_is_not_a_server_error(client, capsys):
    scope = {"type": "http", "method": "POST", "path": "/invocations", "headers": [], "query_string": b""}
    messages = iter([{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}])
    sent = []

    async def receive():
        return next(messages)

    async def send(message):
        sent.append(message)

    asyncio.run(client.app(scope, receive, send))
    assert json.loads(capsys.readouterr().out)["status"] == 499


def test_all_other_errors_are_json_too(client, model_dir, white_png):
    assert error_of(client.get("/nowhere")) == (404, "HTTPError")
    assert error_of(client.get("/invocations")) == (405, "HTTPError")
    assert error_of(post(client_of(model=None), white_png, "image/png")) == (500, "InternalError")


def test_ping_is_503_while_predictions_fail_and_200_again_once_they_succeed(model_dir, white_png):
    model = inference.model_fn(model_dir)
    changing = SimpleNamespace(session=model.session, labels=model.labels, size=model.size)
    client = client_of(changing)
    assert client.get("/ping").status_code == 200
    changing.session = None
    assert error_of(client.get("/ping")) == (503, "InternalError")
    changing.session = model.session
    assert client.get("/ping").status_code == 200


def test_a_request_logs_one_line_with_sizes_and_time_but_no_content(client, white_png, capsys):
    response = post(client, white_png, "image/png")
    client.get("/ping?a=b")
    post(client, b"no image", "image/png")
    invocation, ping, rejected = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [type(line.pop("ms")) for line in (invocation, ping, rejected)] == [float] * 3
    received, sent = len(white_png), len(response.content)
    expected = {"method": "POST", "path": "/invocations", "status": 200, "received": received, "sent": sent}
    assert invocation == expected
    assert ping == {"method": "GET", "path": "/ping", "status": 200, "received": 0, "sent": 0}
    assert rejected == expected | {"status": 400, "received": len(b"no image"), "sent": rejected["sent"]}


def test_a_web_page_of_another_origin_is_403(client, white_png):
    for headers in ({"origin": "http://evil.example"}, {"sec-fetch-site": "cross-site"}):
        response = client.post("/invocations", content=white_png, headers={"content-type": "image/png", **headers})
        assert error_of(response) == (403, "ForeignOriginError")
    own = {"origin": str(client.base_url), "sec-fetch-site": "same-origin"}
    assert client.get("/ping", headers=own).status_code == 200


def test_the_models_own_code_is_used(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path.copy())
    code = tmp_path / "code"
    code.mkdir()
    (code / "sibling.py").write_text("ANSWER = 42")
    (code / "inference.py").write_text("from sibling import ANSWER")
    assert server.load_inference(tmp_path).ANSWER == 42


def test_submit_directory_and_program_are_used_if_they_exist(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.setenv("SAGEMAKER_PROGRAM", "own.py")
    monkeypatch.setenv("SAGEMAKER_SUBMIT_DIRECTORY", str(tmp_path))
    (tmp_path / "own.py").write_text("ANSWER = 'own'")
    assert server.load_inference(tmp_path / "model").ANSWER == "own"
    monkeypatch.setenv("SAGEMAKER_SUBMIT_DIRECTORY", str(tmp_path / "elsewhere"))
    assert Path(server.load_inference(tmp_path / "model").__file__) == Path(inference.__file__)


def test_the_server_started_as_sagemaker_does_classifies_an_image_and_stops_on_sigterm(model_dir, white_png):
    with serving(model_dir) as process:
        assert post_image(process.connect(), white_png) == (200, WHITE)
    assert process.returncode() == 0
    assert '"path": "/invocations", "status": 200' in process.output
    assert "IHDR" not in process.output
    assert "Traceback" not in process.output


# Responds with its process id. The step that SLOW names ("model_fn", "first image" or, by default, the request body
# "slow") creates a file begun-<uuid> and blocks until the file "go" or "go-<turn>" exists. Other steps do not block.
SLOW_INFERENCE = """
import os, pathlib, time, uuid
folder = pathlib.Path(__file__).parent

class UnsupportedContentTypeError(ValueError): pass
class UnsupportedImageError(ValueError): pass

def wait(what):
    if what != os.environ.get("SLOW", "slow"):
        return
    turn = len(list(folder.glob("begun-*"))) + 1
    (folder / f"begun-{uuid.uuid4()}").touch()
    while not (folder / "go").exists() and not (folder / f"go-{turn}").exists():
        time.sleep(0.01)

def model_fn(model_dir): wait("model_fn")
def input_fn(body, content_type): return body, content_type
def is_quick(inputs): return inputs[1] == "image/png" and len(inputs[0]) <= 262_144
def output_fn(prediction, accept): return prediction, "text/plain"
def predict_fn(inputs, model):
    body = inputs[0]
    wait("first image" if body.startswith(b"\\x89PNG") else body.decode().strip())
    return str(os.getpid())
"""
LINES, IMAGE = "application/jsonlines", "image/png"  # classified on the pool, and on the event loop's thread


@pytest.fixture
def slow_model_dir(tmp_path):
    code = tmp_path / "code"
    code.mkdir()
    (code / "inference.py").write_text(SLOW_INFERENCE)
    return tmp_path


def begun(model_dir):
    return len(list((model_dir / "code").glob("begun-*")))


def release(model_dir, turn=None):
    (model_dir / "code" / (f"go-{turn}" if turn else "go")).touch()


def send(connection, body, content_type):
    connection.request("POST", "/invocations", body, {"Content-Type": content_type})


def readable(connections):
    """The connections on which a response has arrived."""
    by_socket = {connection.sock: connection for connection in connections}
    return [by_socket[each] for each in select.select(by_socket, [], [], 0)[0]]


def receive(connection):
    response = connection.getresponse()
    return response.status, response.read().decode()


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("content_type", [LINES, IMAGE])
def test_open_requests_are_finished_after_sigterm(slow_model_dir, workers, content_type):
    with serving(slow_model_dir, workers) as process:
        connection = process.connect()
        send(connection, b"slow", content_type)
        eventually(lambda: begun(slow_model_dir))
        process.terminate()
        if content_type == LINES:
            eventually(lambda: not process.is_listening())
        release(slow_model_dir)
        assert receive(connection)[0] == 200
        eventually(lambda: not process.is_listening())
    assert process.returncode() == 0


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("slow", ["model_fn", "first image"])
def test_nothing_listens_before_a_first_image_is_classified_and_sigterm_stops_it_at_once(slow_model_dir, workers, slow):
    with starting(slow_model_dir, workers, SLOW=slow) as process:
        eventually(lambda: begun(slow_model_dir) == workers)
        assert not process.is_listening()
        process.terminate()
        assert process.returncode() == 0
    assert "Traceback" not in process.output


def test_two_workers_serve_and_one_that_dies_is_replaced_while_the_other_keeps_running(slow_model_dir):
    with serving(slow_model_dir, 2) as process:
        eventually(lambda: len(pids(process)) == 2)
        first, second = pids(process)
        os.kill(first, signal.SIGKILL)
        eventually(lambda: not is_alive(first))
        assert second in pids(process)
        eventually(lambda: len(pids(process)) == 2)
        assert first not in pids(process)
        assert process.get("/ping") == 200
    assert process.returncode() == 0


def pids(process):
    """The process ids of the workers: of 30 connections, each worker gets at least one."""
    return {int(post_image(process.connect(), b"quick")[1]) for _ in range(30)}


def is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_an_image_above_the_limit_is_503_before_the_queued_ones_are_classified(slow_model_dir):
    with serving(slow_model_dir, 1) as process:
        connections = [process.connect() for _ in range(server.MAX_REQUESTS + 4)]
        for connection in connections:  # connect all before one of them blocks the event loop
            assert post_image(connection, b"quick")[0] == 200
        send(connections[0], b"slow", IMAGE)
        eventually(lambda: begun(slow_model_dir) == 1)
        for connection in connections[1:]:
            send(connection, b"slow", IMAGE)
        release(slow_model_dir, turn=1)
        eventually(lambda: len(readable(connections[1:])) == 3)
        rejected = readable(connections[1:])
        assert receive(connections[0])[0] == 200
        assert {receive(connection)[0] for connection in rejected} == {503}
        accepted = set(connections[1:]) - set(rejected)
        assert begun(slow_model_dir) <= 2

        more = [connections[0], *rejected]
        for connection in more:
            send(connection, b"slow", IMAGE)
        for turn in (2, 3):  # whose places in the queue go to two of `more`
            release(slow_model_dir, turn)
        eventually(lambda: len(readable(more)) >= 2)
        assert {receive(connection)[0] for connection in readable(more)} == {503}
        assert begun(slow_model_dir) <= 4
        release(slow_model_dir)
        assert {receive(connection)[0] for connection in accepted} == {200}


def test_requests_above_the_limit_are_503_immediately_and_ping_still_succeeds(slow_model_dir):
    with serving(slow_model_dir, 1) as process:
        connections = [process.connect() for _ in range(server.MAX_REQUESTS + 1)]
        for connection in connections:
            send(connection, b"slow", LINES)
        eventually(lambda: readable(connections))
        (rejected,) = readable(connections)
        accepted = [connection for connection in connections if connection != rejected]
        assert receive(rejected)[0] == 503
        message = f"{server.MAX_REQUESTS} requests are already running or queued"
        refusal = (503, {"error": {"code": "OverloadedError", "message": message}})
        assert post_image(process.connect(), bytes(server.MAX_BODY_BYTES)) == refusal
        eventually(lambda: begun(slow_model_dir) == server.CORES)
        assert process.get("/ping") == 200
        release(slow_model_dir)
        assert {receive(connection)[0] for connection in accepted} == {200}
        assert post_image(process.connect(), b"slow")[0] == 200


def test_a_large_image_does_not_delay_a_ping(slow_model_dir):
    with serving(slow_model_dir, 1) as process:
        connection = process.connect()
        send(connection, b"slow".ljust(inference.QUICK_BYTES + 1), IMAGE)
        eventually(lambda: begun(slow_model_dir))
        assert process.get("/ping") == 200
        release(slow_model_dir)
        assert receive(connection)[0] == 200


def test_queued_capture_events_are_written_on_shutdown(model_dir, white_png, tmp_path):
    with serving(model_dir, DATA_CAPTURE_DIR=str(tmp_path)) as process:
        post_image(process.connect(), white_png)
    (file,) = tmp_path.rglob("*.jsonl")
    event = json.loads(file.read_text())
    assert event["captureData"]["endpointInput"]["data"] == base64.b64encode(white_png).decode()
    assert event["captureData"]["endpointOutput"]["data"] == json.dumps(WHITE)


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("file, content", [("model.onnx", "no model"), ("metadata.json", WRONG_SIZE)])
def test_a_model_that_fails_to_load_stops_the_server_and_the_log_says_why(tmp_path, file, content, workers):
    (write_tiny_model(tmp_path) / file).write_text(content)
    with starting(tmp_path, workers) as process:
        assert process.returncode() == STARTUP_FAILURE
    assert "onnxruntime" in process.output


@pytest.mark.parametrize("workers", ["0", "-1", "1.5", "two"])
def test_an_invalid_number_of_workers_is_named(model_dir, workers):
    with starting(model_dir, workers) as process:
        assert process.returncode() == 2
    assert f"SAGEMAKER_MODEL_SERVER_WORKERS is '{workers}'" in process.output


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_in_use_stops_the_server(model_dir, workers):
    with serving(model_dir, workers) as first, starting(model_dir, workers, SAGEMAKER_BIND_TO_PORT=first.port) as other:
        assert other.returncode() == STARTUP_FAILURE
    assert "address already in use" in other.output.lower()


def raw(process, data):
    """A connection on which only these bytes have been sent."""
    connection = socket.create_connection(("127.0.0.1", process.port), timeout=30)
    connection.sendall(data)
    return connection


def ended(connection):
    """Whether the server has closed the connection; what it sent before is read."""
    connection.settimeout(0.05)
    with contextlib.suppress(TimeoutError):
        while connection.recv(65_536):
            pass
        return True
    return False


HALF_SENT = b"POST /invocations HTTP/1.1\r\nhost: x\r\ncontent-type: image/png\r\ncontent-length: 1000\r\n\r\nhalf"


def test_stalled_bodies_do_not_keep_others_out(model_dir, white_png):
    with serving(model_dir, 1) as process:
        stalled = [raw(process, HALF_SENT) for _ in range(40)]
        assert post_image(process.connect(), white_png) == (200, WHITE)
        for connection in stalled:
            connection.close()


def test_headers_and_bodies_that_do_not_arrive_in_time_end_the_connection(model_dir):
    limits = (
        "import http_limits; http_limits.HEADER_SECONDS = http_limits.BODY_SECONDS = 0.5; import server; server.main()"
    )
    with serving(model_dir, 1, limits, PYTHONPATH=Path(server.__file__).parent) as process:
        started = time.monotonic()
        half_sent = [raw(process, data) for data in (b"", b"GET /ping HTT", HALF_SENT)]
        eventually(lambda: all(ended(connection) for connection in half_sent))
        assert 0.4 < time.monotonic() - started < 10


def test_a_header_without_end_is_refused(model_dir):
    with serving(model_dir, 1) as process:
        connection = raw(process, b"GET /ping HTTP/1.1\r\nx: ")
        with contextlib.suppress(ConnectionError):
            for _ in range(100):
                connection.sendall(b"x" * 65_536)
            connection.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionError):
            assert connection.recv(100).startswith(b"HTTP/1.1 431 ")
        assert process.get("/ping") == 200


def test_a_request_that_arrives_while_the_server_stops_is_answered(model_dir, white_png):
    with serving(model_dir, 1) as process:
        connection = process.connect()
        connection.connect()
        process.terminate()
        eventually(lambda: not process.is_listening())
        assert post_image(connection, white_png) == (200, WHITE)
    assert process.returncode() == 0


def test_a_queued_request_whose_client_has_left_is_not_started(slow_model_dir):
    with serving(slow_model_dir, 1) as process:
        busy = [process.connect() for _ in range(server.CORES)]
        for connection in busy:
            send(connection, b"slow", LINES)
        eventually(lambda: begun(slow_model_dir) == server.CORES)
        gone = process.connect()
        send(gone, b"slow", LINES)
        time.sleep(0.3)
        gone.close()
        time.sleep(0.3)
        release(slow_model_dir)
        assert {receive(connection)[0] for connection in busy} == {200}
        assert post_image(process.connect(), b"quick")[0] == 200
        assert begun(slow_model_dir) == server.CORES


def test_too_many_lines_and_hostile_images_are_400_by_name(client):
    too_many = post(client, b"7\n" * (inference.MAX_LINES + 1), LINES)
    assert error_of(too_many) == (400, "ImageTooLargeError")
    declared = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + bytes([0, 1, 0, 0, 0, 1, 0, 0, 8, 2, 0, 0, 0])
    assert error_of(post(client, declared, IMAGE)) == (400, "ImageTooLargeError")


class Process:
    """The server, started as SageMaker does."""

    def __init__(self, model_dir, workers, variables, log, code=None):
        with socket.create_server(("127.0.0.1", 0)) as free:
            self.port = free.getsockname()[1]
        environment = os.environ | {"SM_MODEL_DIR": str(model_dir), "SAGEMAKER_BIND_TO_PORT": str(self.port)}
        if workers is not None:
            environment["SAGEMAKER_MODEL_SERVER_WORKERS"] = workers
        environment = {name: str(value) for name, value in (environment | variables).items()}
        program = ["-c", code] if code else [server.__file__]
        command = [sys.executable, *program, "serve", "--host", "127.0.0.1"]
        self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True)
        self.terminate = self.process.terminate

    def kill(self):
        """Kill the workers too, even if the supervisor is already gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)

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
        return self.process.wait(60)


@contextlib.contextmanager
def starting(model_dir, workers=None, code=None, **variables):
    """A started process, with its `output` once it has exited. `workers` is SAGEMAKER_MODEL_SERVER_WORKERS."""
    with tempfile.TemporaryFile("w+") as log:  # a pipe that nobody reads would fill up and block the process
        process = Process(model_dir, workers, variables, log, code)
        try:
            yield process
        finally:
            process.kill()
            process.returncode()
            log.seek(0)
            process.output = log.read()


@contextlib.contextmanager
def serving(model_dir, workers=None, code=None, **variables):
    """A process that listens, stopped with SIGTERM."""
    with starting(model_dir, workers, code, **variables) as process:
        eventually(lambda: process.process.poll() is not None or process.is_listening())
        yield process
        process.terminate()
        process.returncode()


def post_image(connection, body):
    """Status and content of the response to a PNG."""
    send(connection, body, IMAGE)
    status, content = receive(connection)
    return status, json.loads(content) if content.startswith("{") else content


def eventually(probe, seconds=20):
    deadline = time.monotonic() + seconds
    while not (found := probe()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    return found
