import hashlib
import json

import pytest
from botocore.exceptions import ClientError
from botocore.stub import ANY, Stubber

import start_execution

MACHINE = "arn:aws:states:us-east-1:123456789012:stateMachine:image-classification-ClassifyImageStateMachine"
STARTED = {"executionArn": f"{MACHINE}:name", "startDate": 1795510800}
REQUEST = {"s3_bucket": "images", "s3_key": "uploads/seven.png"}


@pytest.fixture
def states():
    with Stubber(start_execution.states) as stubber:
        yield stubber
        stubber.assert_no_pending_responses()


def uploaded(event, **changes):
    upload = event("start_execution")
    upload["detail"]["object"] |= {name.replace("_", "-"): value for name, value in changes.items()}
    return upload


def name_of(event):
    return start_execution.request_for(event["detail"])[0]


def test_an_upload_starts_an_execution_named_by_bucket_key_and_sequencer(event, context, states):
    name = hashlib.sha256(b'["images", "uploads/seven.png", "617f08299329d189"]').hexdigest()
    expected = {"stateMachineArn": MACHINE, "name": name, "input": json.dumps(REQUEST)}
    states.add_response("start_execution", STARTED, expected)
    assert start_execution.lambda_handler(event("start_execution"), context) == {"name": name, "started": True}


def test_the_version_of_an_object_names_its_execution_and_is_in_its_input(event, context, states):
    name = hashlib.sha256(b'["images", "uploads/seven.png", "v1", "v1"]').hexdigest()
    request = json.dumps(REQUEST | {"s3_version_id": "v1"})
    states.add_response("start_execution", STARTED, {"stateMachineArn": MACHINE, "name": name, "input": request})
    start_execution.lambda_handler(uploaded(event, version_id="v1"), context)


def test_a_second_event_of_an_upload_succeeds_and_starts_nothing(event, context, states):
    states.add_client_error("start_execution", "ExecutionAlreadyExists")
    assert not start_execution.lambda_handler(event("start_execution"), context)["started"]


def test_any_other_error_reaches_lambda_which_invokes_the_function_again(event, context, states):
    states.add_client_error("start_execution", "ExecutionLimitExceeded")
    with pytest.raises(ClientError, match="ExecutionLimitExceeded"):
        start_execution.lambda_handler(event("start_execution"), context)


def test_another_version_another_upload_and_another_key_have_other_names(event):
    changes = [{}, {"sequencer": "2"}, {"version_id": "v1"}, {"version_id": "v2"}, {"key": "uploads/7.png"}]
    assert len({name_of(uploaded(event, **change)) for change in changes}) == len(changes)
    first = uploaded(event, version_id="v1")
    assert name_of(first | {"id": "another", "time": "later"}) == name_of(first)


def test_a_name_is_valid_whatever_the_key(event):
    name = name_of(uploaded(event, key="uploads/" + "ä \U0001f600\ud800<>" * 90))
    assert len(name) <= 80 and name.isalnum()


def test_a_folder_of_the_console_starts_nothing(event, context, states):
    folder = uploaded(event, key="uploads/folder/", size=0)
    assert not start_execution.lambda_handler(folder, context)["started"]


@pytest.mark.parametrize(
    "upload",
    [{"key": "uploads/a.png", "size": 0}, {"key": "uploads/folder/", "size": 5}, {"size": 6_000_000_000}],
    ids=["an empty object", "a folder with content", "6 GB"],
)
def test_any_other_object_starts_an_execution_whatever_its_size(event, context, states, upload):
    states.add_response("start_execution", STARTED, {"stateMachineArn": MACHINE, "name": ANY, "input": ANY})
    assert start_execution.lambda_handler(uploaded(event, **upload), context)["started"]
