"""Fixtures that create and run functions and state machines, emulated or on AWS."""

import io
import json
import time
import uuid
import zipfile

import pytest


def eventually(probe, seconds=10):
    """The first true result of `probe`, or its last result after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (result := probe()) and time.monotonic() < deadline:
        time.sleep(0.05)
    return result


@pytest.fixture
def function(client, role):
    """Create a function from source code; returns its ARN."""
    created = []

    def create(source, **settings):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("app.py", source)
        response = client("lambda").create_function(
            FunctionName=f"conformance-{uuid.uuid4().hex[:8]}",
            Runtime="python3.13",
            Handler="app.handler",
            Role=role,
            Code={"ZipFile": archive.getvalue()},
            Timeout=10,
            **settings,
        )
        created.append(response["FunctionArn"])
        client("lambda").get_waiter("function_active_v2").wait(FunctionName=created[-1])
        return created[-1]

    yield create
    for arn in created:
        client("lambda").delete_function(FunctionName=arn)


@pytest.fixture
def machine(client, role):
    """Create a state machine; returns its ARN."""
    created = []

    def create(states, start=None, settings=None, **top_level):
        definition = {"QueryLanguage": "JSONata", "StartAt": start or next(iter(states)), "States": states, **top_level}
        name = f"conformance-{uuid.uuid4().hex[:8]}"
        response = client("stepfunctions").create_state_machine(
            name=name, definition=json.dumps(definition), roleArn=role, **settings or {}
        )
        created.append(response["stateMachineArn"])
        return created[-1]

    yield create
    for arn in created:
        client("stepfunctions").delete_state_machine(stateMachineArn=arn)


@pytest.fixture
def execute(client, seconds_to_end):
    """Run a state machine until it ends; returns the response of DescribeExecution."""

    def run(arn, value=None):
        states = client("stepfunctions")
        text = json.dumps(value or {}, ensure_ascii=False)
        execution = states.start_execution(stateMachineArn=arn, input=text)["executionArn"]
        return eventually(
            lambda: (response := states.describe_execution(executionArn=execution))["status"] != "RUNNING" and response,
            seconds_to_end,
        )

    return run


def invoke_task(function_arn, **fields):
    return {
        "Type": "Task",
        "Resource": "arn:aws:states:::lambda:invoke",
        "Arguments": {"FunctionName": function_arn, "Payload": "{% $states.input %}"},
        "Output": "{% $states.result.Payload %}",
        "End": True,
        **fields,
    }


def failing_task(**fields):
    """A task that fails: it sends to a queue that does not exist."""
    arguments = {"QueueUrl": "http://localhost/000000000000/none", "MessageBody": "{% $string($states.input) %}"}
    return {
        "Type": "Task", "Resource": "arn:aws:states:::sqs:sendMessage", "Arguments": arguments, "End": True, **fields
    }  # fmt: skip
