"""The server of make review: what it refuses, before and after it asks AWS."""

import base64
import dataclasses
import json
import socket
import sys
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import EndpointConnectionError
from botocore.stub import Stubber
from starlette.testclient import TestClient

from functions.predictions import split_labels
from local import review as command
from local import run
from local.command import UsageError
from local.executions import NOT_ACCEPTED, Outcome
from local.target import Target
from review import server
from review.backlog import Backlog, Filter, interleaved, natural
from review.table import ReviewTable, review_of
from review_item import item_for

RESULT = {
    "s3_bucket": "images",
    "s3_key": "uploads/cat.png",
    "s3_version_id": "v1",
    "label": "cat",
    "confidence": 0.6,
    "threshold": 0.75,
    "accepted": False,
    "predictions": [{"label": "cat", "probability": 0.6}, {"label": "dog", "probability": 0.4}],
    "endpoint": {"name": "endpoint"},
}
ITEM = item_for(RESULT, 0)
ID = base64.urlsafe_b64encode(json.dumps(["s3://images/uploads/cat.png", "v1"]).encode()).decode()
METADATA = {"ResponseMetadata": {"HTTPHeaders": {}}}
DECISION = {"session": "tab", "id": ID, "revision": 0, "decision": "label", "label": "cat"}


@pytest.fixture
def aws():
    """A stubbed DynamoDB: a test adds the responses that it expects requests for."""
    client = boto3.client("dynamodb", config=Config(retries={"total_max_attempts": 1}))
    with Stubber(client) as stubber:
        yield stubber
        stubber.assert_no_pending_responses()


@pytest.fixture
def page(aws):
    table = ReviewTable(aws.client, "reviews")
    reviewing = server.Reviewing(Backlog(table, "mary", ["cat", "dog"]), boto3.client("s3"), "the <local> stack")
    return TestClient(server.create_app(reviewing, "token"), base_url="http://127.0.0.1:8000")


def error_of(response):
    assert response.headers["cache-control"] == "no-store" and "access-control-allow-origin" not in response.headers
    return response.status_code, response.json()["error"]["code"], response.json()["error"]["retry"]


def test_the_page_names_the_stack_and_the_reviewer_as_text(page):
    response = page.get("/token/")
    assert "the &lt;local&gt; stack, as mary" in response.text and "{{" not in response.text
    assert "default-src 'none'; script-src 'self'" in response.headers["content-security-policy"]
    assert response.headers["referrer-policy"] == "no-referrer"
    assert page.get("/token/page.js").headers["content-type"].startswith("text/javascript")
    assert page.get("/token/page.css").headers["content-type"].startswith("text/css")


@pytest.mark.parametrize("path", ["/", "/wrong/", "/toke/next", "/token2/next", "/wrong/page.js", "//token/"])
def test_nothing_is_served_without_the_token(page, path):
    assert error_of(page.get(path)) == (403, "WrongTokenError", True)


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://example.com"},
        {"origin": "http://127.0.0.1:9000"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
        {"host": "rebound.example.com"},
    ],
)
def test_requests_of_other_web_pages_are_refused(page, headers):
    for response in (page.get("/token/", headers=headers), page.post("/token/decide", json=DECISION, headers=headers)):
        assert error_of(response) == (403, "ForeignOriginError", False)


def test_there_is_no_cors(page):
    preflight = {"access-control-request-method": "POST", "access-control-request-headers": "content-type"}
    response = page.options("/token/decide", headers=preflight)
    assert error_of(response) == (405, "HTTPError", False)
    assert page.get("/token/decide").status_code == 405


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ({"session": ""}, "session"),
        ({"session": "x" * 65}, "session has more than 64 characters"),
        ({"session": 7}, "session"),
        ({"id": None}, "an ID is no image and version"),
        ({"id": "*"}, "an ID is no image and version"),
        ({"id": base64.b64encode(b'["s3://images/cat.png"]').decode()}, "an ID is no image and version"),
        ({"id": base64.b64encode(b'["", ""]').decode()}, "an ID is no image and version"),
        ({"decision": "perhaps"}, "decision is none of"),
        ({"decision": "not_usable"}, "decision is none of"),
        ({"label": None}, "decision is none of"),
        ({"revision": "0"}, "revision"),
        ({"revision": True}, "revision"),
    ],
)
def test_a_malformed_decision_is_refused_by_name(page, aws, body, why):
    if "session" in body:
        aws.add_response("get_item", METADATA | {"Item": ITEM})
    response = page.post("/token/decide", json=DECISION | body)
    assert error_of(response) == (400, "InvalidRequestError", False) and why in response.json()["error"]["message"]


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\xff", b"[" * 100_000])
def test_a_body_that_is_no_json_object_is_refused(page, content):
    response = page.post("/token/next", content=content, headers={"content-type": "application/json"})
    assert error_of(response) == (400, "InvalidRequestError", False)


def test_a_form_cannot_send_a_request(page):
    response = page.post("/token/decide", content=json.dumps(DECISION), headers={"content-type": "text/plain"})
    assert error_of(response) == (400, "InvalidRequestError", False)


def test_a_large_body_is_refused(page):
    response = page.post("/token/next", json={"session": "x" * server.MAX_BODY_BYTES})
    assert error_of(response) == (413, "RequestTooLargeError", False)


def test_an_unknown_label_is_refused_by_name(page, aws):
    aws.add_response("get_item", METADATA | {"Item": ITEM})
    response = page.post("/token/decide", json=DECISION | {"label": "cow"})
    assert error_of(response) == (400, "UnknownLabelError", False)
    assert response.json()["error"]["message"] == "cow is none of the labels: cat, dog"


def test_an_image_without_a_review_cannot_be_read(page, aws):
    aws.add_response("get_item", METADATA)
    assert error_of(page.get(f"/token/image/{ID}")) == (404, "ReviewNotFoundError", False)


def test_a_decision_on_what_was_decided_says_by_whom(page, aws):
    decided = {"status": "reviewed", "decision": "label", "reviewed_label": "dog", "reviewer": "bob"}
    decided_item = ITEM | {name: {"S": value} for name, value in decided.items()} | {"revision": {"N": "1"}}
    aws.add_response("get_item", METADATA | {"Item": ITEM})
    aws.add_client_error("update_item", "ConditionalCheckFailedException")
    for _ in range(2):  # for the message, and to find out whether the request was repeated
        aws.add_response("get_item", METADATA | {"Item": decided_item})
    response = page.post("/token/decide", json=DECISION)
    assert error_of(response) == (409, "AlreadyReviewedError", False)
    assert response.json()["error"]["message"].endswith("was decided meanwhile: bob: dog")
    assert response.json()["error"]["reviewed_label"] == "dog"


def test_a_repeated_decision_succeeds_without_a_second_one(page, aws):
    decided = {"status": "reviewed", "decision": "label", "reviewed_label": "cat", "reviewer": "mary"}
    decided_item = ITEM | {name: {"S": value} for name, value in decided.items()} | {"revision": {"N": "1"}}
    aws.add_response("get_item", METADATA | {"Item": decided_item})
    aws.add_client_error("update_item", "ConditionalCheckFailedException")
    for _ in range(2):
        aws.add_response("get_item", METADATA | {"Item": decided_item})
    assert page.post("/token/decide", json=DECISION).json() == {"revision": 1}


def test_what_another_reviewer_is_looking_at_is_retried(page, aws):
    claimed = ITEM | {"claimed_by": {"S": "bob"}, "claim_session": {"S": "other"}}
    aws.add_response("get_item", METADATA | {"Item": ITEM})
    aws.add_client_error("update_item", "ConditionalCheckFailedException")
    aws.add_response("get_item", METADATA | {"Item": claimed})
    assert error_of(page.post("/token/decide", json=DECISION)) == (409, "AlreadyClaimedError", True)


@pytest.mark.parametrize(
    ("code", "name"),
    [
        ("ProvisionedThroughputExceededException", "ThrottledError"),
        ("ThrottlingException", "ThrottledError"),
        ("ExpiredTokenException", "CredentialsExpiredError"),
        ("AccessDeniedException", "AccessDeniedError"),
        ("InternalServerError", "AwsError"),
    ],
)
def test_what_aws_refuses_is_named_and_retried(page, aws, code, name):
    aws.add_client_error("get_item", code, "no")
    assert error_of(page.post("/token/decide", json=DECISION)) == (503, name, True)


@pytest.mark.parametrize(("minutes", "words"), [(7, "7 minutes ahead"), (-90, "90 minutes behind")])
def test_a_wrong_clock_is_named(page, aws, minutes, words):
    aws_time = format_datetime(datetime.now(UTC) - timedelta(minutes=minutes), usegmt=True)
    headers = {"HTTPHeaders": {"date": aws_time}}
    aws.add_client_error("get_item", "InvalidSignatureException", "Signature expired", response_meta=headers)
    response = page.post("/token/decide", json=DECISION)
    assert error_of(response) == (503, "WrongClockError", True) and words in response.json()["error"]["message"]


def test_a_wrong_signature_at_the_right_time_is_not_blamed_on_the_clock(page, aws):
    headers = {"HTTPHeaders": {"date": format_datetime(datetime.now(UTC), usegmt=True)}}
    aws.add_client_error("get_item", "InvalidSignatureException", "no", response_meta=headers)
    assert error_of(page.post("/token/decide", json=DECISION)) == (503, "AwsError", True)


def test_an_aws_that_does_not_respond_is_named():
    response = server.refused_by_aws(EndpointConnectionError(endpoint_url="https://dynamodb"))
    assert json.loads(response.body)["error"]["code"] == "AwsUnreachableError"


def review(name, confidence, reason="low_confidence", **more):
    changed = {"s3_key": name, "confidence": confidence, "accepted": reason == "audit"}
    return review_of(item_for(RESULT | changed, 1) | {each: {"S": value} for each, value in more.items()})


def test_audits_are_mixed_in_the_oldest_first():
    unsure = [review(f"unsure-{number}", number / 100) for number in range(20)]
    dates = [f"2026-11-{26 - number}T00:00:00.000+00:00" for number in range(8)]
    audits = [review(date, 0.8 + at / 100, "audit", created_at=date) for at, date in enumerate(dates)]
    order = [image.rpartition("/")[2] for image, _ in interleaved([*unsure, *audits])]
    assert sorted(order) == sorted(each.s3_key for each in [*unsure, *audits])
    assert [name for name in order if name.startswith("unsure")] == [each.s3_key for each in unsure]
    assert [at for at, name in enumerate(order) if name in dates] == [4, 9, 14, 19, 24, 25, 26, 27]
    assert [name for name in order if name in dates] == sorted(dates)


def test_filters_are_by_label_reason_and_age():
    old = datetime.now(UTC) - timedelta(hours=2)
    backlog = Backlog(ReviewTable(boto3.client("dynamodb"), "reviews"), "mary", [])
    image = review("cat.png", 0.5, created_at=old.isoformat())
    for wanted in (Filter(), Filter("cat"), Filter(reason="low_confidence"), Filter(min_age=7000)):
        assert backlog.matches(image, wanted)
    for wanted in (Filter("dog"), Filter(reason="audit"), Filter(min_age=7400)):
        assert not backlog.matches(image, wanted)


@pytest.fixture
def backlog(monkeypatch):
    """A backlog whose index has what the test puts into backlog.index."""
    backlog = Backlog(ReviewTable(boto3.client("dynamodb"), "reviews"), "mary", [])
    backlog.index = []
    monkeypatch.setattr(backlog.table, "pending", lambda: iter(backlog.index))
    return backlog


def test_an_index_that_is_behind_brings_no_decided_image_back_and_loses_no_undone_one(backlog):
    waiting = review("cat.png", 0.5)
    decided = dataclasses.replace(waiting, status="reviewed", revision=1)
    undone = dataclasses.replace(waiting, revision=2)
    for known, index, expected in (
        (decided, [waiting], []),
        (undone, [waiting], [undone]),  # as before the decision
        (undone, [], [undone]),  # as before the undo
        (undone, [undone], [undone]),
    ):
        backlog.note(waiting, known)
        backlog.index = index
        backlog.read()
        left = list(backlog.reviews.values())
        assert [each.revision for each in left] == [each.revision for each in expected]
        assert backlog.counts("tab", Filter())["left"] == len(backlog.order) == len(expected)
    backlog.noted_at = {key: at - 60 for key, at in backlog.noted_at.items()}  # somebody else decided, long after
    backlog.index = []
    backlog.read()
    assert backlog.counts("tab", Filter())["left"] == 0


def test_what_is_noted_late_brings_no_decided_image_back(backlog, monkeypatch):
    waiting = review("cat.png", 0.5)
    claimed = dataclasses.replace(waiting, claimed_by="mary", claim_session="tab")

    def claim(*_):  # its response arrives after the decision's
        backlog.note(waiting, dataclasses.replace(waiting, status="reviewed", revision=1))
        return claimed

    monkeypatch.setattr(backlog.table, "claim", claim)
    backlog.claim(waiting, "tab")
    assert backlog.counts("tab", Filter())["left"] == 0 and backlog.release_all() == 0


def test_what_a_page_counts_itself_is_not_counted(backlog):
    backlog.index = [review("cat.png", 0.5), review("dog.png", 0.6)]
    backlog.read()
    counts = backlog.counts("tab", Filter(), {("s3://images/cat.png", "v1")})
    assert (counts["left"], counts["by_label"], counts["by_reason"]) == (1, {"cat": 1}, {"low_confidence": 1})


def test_numbers_in_labels_are_sorted_as_numbers():
    labels = ["class-10", "class-9", "10", "9", "b", "²", ""]
    assert sorted(labels, key=natural) == ["", "9", "10", "b", "class-9", "class-10", "²"]


def test_the_address_is_the_same_next_time_and_private(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "PAGES", tmp_path / "review.json")
    bound, token = command.address("stack", 0)
    port = bound.getsockname()[1]
    assert bound.getsockname()[0] == "127.0.0.1"
    other, other_token = command.address("stack", 0)  # the port is in use: a free one
    assert other.getsockname()[1] != port and other_token == token
    port = other.getsockname()[1]
    for each in (bound, other):
        each.close()
    again, again_token = command.address("stack", 0)
    assert (again.getsockname()[1], again_token) == (port, token)
    again.close()
    assert command.address("second", 0)[1] != token
    assert (tmp_path / "review.json").stat().st_mode & 0o777 == 0o600


def test_a_given_port_is_for_one_time_only(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "PAGES", tmp_path / "review.json")
    ports, tokens = [], set()
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        given = unused.getsockname()[1]
    for port in (given, 0, given, 0):
        bound, token = command.address("stack", port)
        ports.append(bound.getsockname()[1])
        tokens.add(token)
        bound.close()
    assert ports[0] == ports[2] == given and ports[1] == ports[3] != given and len(tokens) == 1


def test_a_port_that_cannot_be_used_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "PAGES", tmp_path / "review.json")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"PORT={port} cannot be used"):
            command.address("stack", port)
    for wrong in ("0", "80", "70000", "http", "-1", "1.5"):
        with pytest.raises(UsageError, match=f"PORT={wrong} is not usable: give a number from 1024 to 65535"):
            command.parse_port(wrong)
    for blocked in ("6000", "6667", "10080"):
        with pytest.raises(UsageError, match=f"PORT={blocked} is blocked by browsers"):
            command.parse_port(blocked)
    assert (command.parse_port(""), command.parse_port("8000")) == (0, 8000)


def test_without_a_running_local_stack_the_command_says_what_to_do(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["review"])
    monkeypatch.setattr("local.command.LOCAL", tmp_path)
    monkeypatch.setattr("local.deployment.LOCAL", tmp_path)
    with pytest.raises(SystemExit):
        command.main()
    assert capsys.readouterr().out == f"StackError: {command.NOT_RUNNING}\n"


@pytest.mark.parametrize(("is_kept", "commands"), [(True, "make review"), (False, "make up, make run, make review")])
def test_make_run_says_how_to_review_what_it_sent_to_review(capsys, is_kept, commands):
    outcome = Outcome("uploads/run/test/7/0.png", "FAILED", "9", 0.5, 0.2, NOT_ACCEPTED, None)
    run.summarise([outcome], is_kept)
    assert f"\nTo review the 1: {commands}\n" in capsys.readouterr().out
    run.summarise([dataclasses.replace(outcome, error=None)], is_kept)
    assert "To review" not in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arn", "name"),
    [
        ("arn:aws:sts::123456789012:assumed-role/Reviewers/mary@example.com", "mary@example.com"),
        ("arn:aws:iam::123456789012:user/team/mary", "mary"),
        ("arn:aws:iam::123456789012:root", "root"),
    ],
)
def test_decisions_on_aws_bear_the_callers_name(arn, name):
    client = boto3.client("sts")
    on_aws = Target("stack", {}, lambda service: client)
    with Stubber(client) as sts:
        sts.add_response("get_caller_identity", {"Arn": arn})
        assert command.reviewer_of(on_aws, "") == name
    assert command.reviewer_of(on_aws, "bob") == "bob"


@pytest.mark.parametrize(("value", "labels"), [("cat, dog,,", ["cat", "dog"]), ("", [])])
def test_labels_are_the_stacks_parameter(value, labels):
    client = boto3.client("cloudformation")
    described = {"StackName": "stack", "CreationTime": datetime.now(UTC), "StackStatus": "CREATE_COMPLETE"}
    described["Parameters"] = [{"ParameterKey": "Labels", "ParameterValue": value}]
    with Stubber(client) as cloudformation:
        cloudformation.add_response("describe_stacks", {"Stacks": [described]}, {"StackName": "stack"})
        assert split_labels(Target("stack", {}, lambda service: client).parameter("Labels")) == labels
