"""The whole stack on the emulated AWS, deployed once, with an endpoint that can be made to fail."""

import contextlib
import itertools
import json
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from local.deployment import deploy, model_archive, upload_model
from local.emulator import processes
from workflow import DIGITS, WAIT_SCALE, Workflow


class EndpointProxy(ThreadingHTTPServer):
    """A proxy of SageMaker's runtime: forwards the functions' requests, unless a test has planted a response."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), EndpointProxyHandler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.runtime_url = ""
        self.planted: list[tuple[int, dict[str, str], bytes] | None] = []
        self.is_down = False
        self.requests = itertools.count(1)
        self.throttle_every = 0  # the share of requests that are throttled, as every n-th
        self.dead_until = 0.0  # of time.monotonic()
        self.refused = 0  # requests while it was dead
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def respond(self, body: bytes, status: int = 200, error: str = "", times: int = 1) -> None:
        """Return this to the next requests, without invoking the endpoint."""
        headers = {"Content-Type": "application/json"} | ({"x-amzn-errortype": error} if error else {})
        self.planted += [(status, headers, body)] * times

    @contextlib.contextmanager
    def outage(self):
        """Close every connection without a response."""
        self.is_down = True
        try:
            yield
        finally:
            self.is_down = False

    def hang_up(self, times: int) -> None:
        """Close the next connections without a response."""
        self.planted += [None] * times

    def fault(self) -> None:
        """Plant a response for a request, if its turn has come."""
        if time.monotonic() < self.dead_until:
            self.hang_up(1)
            self.refused += 1
        elif self.throttle_every and next(self.requests) % self.throttle_every == 0:
            self.respond(b'{"message": "Rate exceeded"}', status=429, error="ThrottlingException")


class EndpointProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.is_down:
            self.close_connection = True
            return
        self.server.fault()
        if self.server.planted:
            if not (response := self.server.planted.pop(0)):
                self.close_connection = True
                return
        else:
            response = self.forward(body)
        status, headers, data = response
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def forward(self, body):
        request = urllib.request.Request(self.server.runtime_url + self.path, body, dict(self.headers), method="POST")
        try:
            with urllib.request.urlopen(request) as response:
                return response.status, dict(response.headers), response.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()

    def log_message(self, *_):
        pass


@pytest.fixture(scope="session")
def endpoint_proxy():
    with EndpointProxy() as proxy:
        yield proxy
        proxy.shutdown()


@pytest.fixture(scope="session")
def stack(tmp_path_factory, endpoint_proxy):
    """A local stack on which the state machine's waits are twenty times shorter."""
    variables = {"AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": endpoint_proxy.url, "SFN_WAIT_SCALE": str(WAIT_SCALE)}
    stack = processes.start(tmp_path_factory.mktemp("stack"), **variables)
    endpoint_proxy.runtime_url = f"http://127.0.0.1:{stack.ports['sagemaker']}"
    yield stack
    processes.stop(stack)


@pytest.fixture(scope="session")
def workflow(stack):
    """template.yaml, deployed with the trained model behind a serverless endpoint."""
    model = upload_model(stack, model_archive())
    return Workflow(stack, deploy(stack, EndpointType="serverless", ModelDataUrl=model))


@pytest.fixture
def endpoint(endpoint_proxy):
    yield endpoint_proxy
    planted, endpoint_proxy.planted = endpoint_proxy.planted, []
    endpoint_proxy.throttle_every, endpoint_proxy.dead_until, endpoint_proxy.refused = 0, 0.0, 0
    assert not planted, "the functions sent fewer requests than the test expected"


@pytest.fixture
def failure_queue(workflow):
    """The URL of the failure queue, emptied of earlier tests' failures."""
    url = workflow.outputs["FailureQueueUrl"]
    time.sleep(1)  # until the last of them has arrived
    workflow.sqs.purge_queue(QueueUrl=url)
    return url


@pytest.fixture(scope="session")
def seven():
    """A scan of a seven that the model classifies with high confidence."""
    return sorted((DIGITS / "test/7").iterdir())[0].read_bytes()


@pytest.fixture(scope="session")
def outcome_events(workflow):
    """A queue that receives every outcome event of the workflow, set up as a subscriber would."""
    events = workflow.stack.client("events")
    queue = workflow.sqs.create_queue(QueueName="outcomes")["QueueUrl"]
    arn = workflow.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    events.put_rule(Name="outcomes", EventPattern=json.dumps({"source": ["image-classification"]}))
    events.put_targets(Rule="outcomes", Targets=[{"Id": "queue", "Arn": arn}])
    return queue
