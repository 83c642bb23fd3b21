"""The whole stack on the emulated AWS, deployed once; and an endpoint that can be made to misbehave."""

import json
import threading
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

import stack as local

ROOT = Path(__file__).parents[2]

SECONDS_TO_END = 60
DIGITS = ROOT / ".local/data/digits"


class EndpointProxy(ThreadingHTTPServer):
    """Stands before SageMaker's runtime and passes on what the functions ask, unless a test has planted an answer."""

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), EndpointProxyHandler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.runtime_url = ""
        self.planted: list[tuple[int, dict[str, str], bytes] | None] = []
        threading.Thread(target=self.serve_forever, daemon=True).start()

    def answers(self, body: bytes, status: int = 200, error: str = "", times: int = 1) -> None:
        """Answer the next requests with this instead of asking the endpoint."""
        headers = {"Content-Type": "application/json"} | ({"x-amzn-errortype": error} if error else {})
        self.planted += [(status, headers, body)] * times

    def hangs_up(self, times: int) -> None:
        """Close the next connections without an answer."""
        self.planted += [None] * times


class EndpointProxyHandler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.planted:
            if not (answer := self.server.planted.pop(0)):
                self.close_connection = True
                return
        else:
            answer = self.ask(body)
        status, headers, data = answer
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(data))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    def ask(self, body):
        request = urllib.request.Request(self.server.runtime_url + self.path, body, dict(self.headers), method="POST")
        try:
            with urllib.request.urlopen(request) as response:
                return response.status, dict(response.headers), response.read()
        except urllib.error.HTTPError as error:
            return error.code, dict(error.headers), error.read()

    def log_message(self, *_):
        pass


@dataclass
class Execution:
    """An execution that has ended, with its history."""

    arn: str
    status: str
    input: dict[str, Any]
    output: dict[str, Any] | None
    error: str | None
    cause: str | None
    history: list[dict[str, Any]] = field(repr=False)

    @property
    def states(self) -> list[str]:
        entered = [event["stateEnteredEventDetails"] for event in self.history if "stateEnteredEventDetails" in event]
        return [details["name"] for details in entered]

    @property
    def task_errors(self) -> list[str]:
        return [event["taskFailedEventDetails"]["error"] for event in self.history if event["type"] == "TaskFailed"]

    @property
    def message(self) -> str:
        """The words of a function's error."""
        return json.loads(self.cause)["errorMessage"]


class Workflow:
    """The deployed stack as a test uses it."""

    def __init__(self, stack, outputs):
        self.visited: set[str] = set()
        self.stack, self.outputs = stack, outputs
        self.s3, self.states, self.sqs = (stack.client(name) for name in ("s3", "stepfunctions", "sqs"))
        self.bucket = outputs["ImageBucketName"]
        self.machine = outputs["ClassifyImageStateMachineArn"]

    def upload(self, key: str, data: bytes) -> str:
        self.s3.put_object(Bucket=self.bucket, Key=key, Body=data)
        return key

    def execute(self, request: dict[str, Any]) -> Execution:
        """Start an execution and wait for its end."""
        started = self.states.start_execution(stateMachineArn=self.machine, input=json.dumps(request))
        return self.ended(started["executionArn"])

    def classify(self, key: str, data: bytes, **more: Any) -> Execution:
        """Upload beside the trigger's prefix and execute."""
        return self.execute({"s3_bucket": self.bucket, "s3_key": self.upload(key, data), **more})

    def ended(self, arn: str) -> Execution:
        described = wait_for(
            lambda: (answer := self.states.describe_execution(executionArn=arn))["status"] != "RUNNING" and answer
        )
        pages = self.states.get_paginator("get_execution_history").paginate(executionArn=arn)
        history = [event for page in pages for event in page["events"]]
        output = described.get("output") if described["status"] == "SUCCEEDED" else None
        execution = Execution(
            arn, described["status"], json.loads(described["input"]), output and json.loads(output),
            described.get("error"), described.get("cause"), history,
        )  # fmt: skip
        self.visited |= set(execution.states)
        return execution

    def started_by_upload(self, key: str) -> Execution:
        """The execution that the upload of this key started, once it has ended."""

        def find():
            for page in self.states.get_paginator("list_executions").paginate(stateMachineArn=self.machine):
                for row in page["executions"]:
                    request = json.loads(self.states.describe_execution(executionArn=row["executionArn"])["input"])
                    if request.get("detail", {}).get("object", {}).get("key") == key:
                        return row["executionArn"]
            return None

        return self.ended(wait_for(find))

    def message_about(self, queue_url: str, text: str, seconds: float = 10) -> dict[str, Any] | None:
        """The message of a queue that holds this text; None when there is none within the time."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            answer = self.sqs.receive_message(QueueUrl=queue_url, MaxNumberOfMessages=10, VisibilityTimeout=0)
            for message in answer.get("Messages", []):
                if text in message["Body"]:
                    return json.loads(message["Body"])
                # Out of the way of the next look, and of the queue's redrive.
                self.sqs.delete_message(QueueUrl=queue_url, ReceiptHandle=message["ReceiptHandle"])
            time.sleep(0.1)
        return None


def wait_for(condition, seconds: float = SECONDS_TO_END):
    """The first true value of `condition()`, asked again and again until the time is up."""
    deadline = time.monotonic() + seconds
    while not (value := condition()):
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.1)
    return value


@pytest.fixture(scope="session")
def endpoint_proxy():
    with EndpointProxy() as proxy:
        yield proxy
        proxy.shutdown()


@pytest.fixture(scope="session")
def stack(tmp_path_factory, endpoint_proxy):
    """A local stack with waits twenty times shorter than the state machine's."""
    stack = local.start(
        tmp_path_factory.mktemp("stack"), AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME=endpoint_proxy.url, SFN_WAIT_SCALE="0.05"
    )
    endpoint_proxy.runtime_url = f"http://127.0.0.1:{stack.ports['sagemaker']}"
    yield stack
    local.stop(stack)


@pytest.fixture(scope="session")
def workflow(stack):
    """template.yaml, deployed with the trained model behind a serverless endpoint."""
    model = local.upload_model(stack, local.model_archive())
    return Workflow(stack, local.deploy(stack, EndpointType="serverless", ModelDataUrl=model))


@pytest.fixture
def endpoint(endpoint_proxy):
    yield endpoint_proxy
    planted, endpoint_proxy.planted = endpoint_proxy.planted, []
    assert not planted, "the functions did not ask as often as the test expected"


@pytest.fixture(scope="session")
def seven():
    """A scan of a seven that the model is sure about."""
    return sorted((DIGITS / "test/7").iterdir())[0].read_bytes()


@pytest.fixture(scope="session")
def outcome_events(workflow):
    """A queue that gets every event of the workflow's outcomes, as a subscriber would set it up."""
    events = workflow.stack.client("events")
    queue = workflow.sqs.create_queue(QueueName="outcomes")["QueueUrl"]
    arn = workflow.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    events.put_rule(Name="outcomes", EventPattern=json.dumps({"source": ["image-classification"]}))
    events.put_targets(Rule="outcomes", Targets=[{"Id": "queue", "Arn": arn}])
    return queue
