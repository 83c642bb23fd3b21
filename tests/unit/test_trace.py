"""The way of one image as the terminal shows it, and the links to look further."""

import io
import json

import pytest
from rich.console import Console

from local import trace
from local.command import StackError
from local.report import render
from recorded import record

ARN = "arn:aws:states:eu-west-1:123456789012:execution:ClassifyImage:one"


@pytest.fixture
def run(tmp_path, monkeypatch):
    made = record(25)
    path = tmp_path / "run.json"
    path.write_text(json.dumps(made))
    monkeypatch.setattr(render, "RECORD", path)
    return made["executions"]


def printed(execution):
    file = io.StringIO()
    Console(file=file, width=300).print(trace.tree(execution))
    return file.getvalue()


def test_an_execution_of_the_last_run_is_found_by_key_name_location_and_arn(run):
    expected = run[3]
    for key in (expected["key"], render.short_name(expected["key"]), f"s3://images/{expected['key']}"):
        assert trace.recorded(key, "")["execution_arn"] == expected["execution_arn"]
    assert trace.recorded("", expected["execution_arn"])["key"] == expected["key"]
    with pytest.raises(StackError, match="not in the last make run"):
        trace.recorded("uploads/other.png", "")


def test_without_a_run_nothing_is_found(tmp_path, monkeypatch):
    monkeypatch.setattr(render, "RECORD", tmp_path / "run.json")
    with pytest.raises(StackError, match="not in the last make run"):
        trace.recorded("uploads/image.png", "")


def test_the_tree_names_the_states_their_times_the_calls_and_the_outcome(run):
    for execution in run:
        text = printed(trace.recorded("", execution["execution_arn"]))
        assert execution["key"] in text
        for state in execution["states"]:
            assert f"{state['name']} {render.seconds(state['seconds'])}" in text
        words = {"accepted": "accepted: ", "review": "sent to review: ", "error": "failed: "}
        assert words[execution["outcome"]] in text
        assert "logged prediction" in text


def test_log_lines_are_shown_in_their_state_and_hostile_text_stays_text(run):
    execution = trace.recorded("", run[0]["execution_arn"])
    line = {"message": "[red]image retrieved[/]", "function_name": "stack-RetrieveImageFunction-x", "width": 8}
    text = printed(execution | {"lines": [line], "key": "[/]"})
    assert text.startswith("[/]")
    assert 'logged [red]image retrieved[/] {"width": 8}' in text


def test_a_running_execution_has_no_outcome_yet(run):
    execution = trace.recorded("", run[0]["execution_arn"])
    assert "still running" in printed(execution | {"outcome": None, "seconds": None, "log": None})


@pytest.mark.parametrize(("partition", "host"), [("aws", "console.aws.amazon.com"), ("aws-cn", "console.amazonaws.cn")])
def test_on_aws_the_links_open_the_console(partition, host):
    arn = ARN.replace("arn:aws:", f"arn:{partition}:")
    assert trace.links(arn, "1-2-3", local=False) == [
        f"execution  {arn}",
        "trace      1-2-3",
        f"console    https://eu-west-1.{host}/states/home?region=eu-west-1#/v2/executions/details/{arn}",
        f"           https://eu-west-1.{host}/cloudwatch/home?region=eu-west-1#xray:traces/1-2-3",
    ]


def test_locally_the_link_is_to_the_page_of_the_last_run_if_it_has_the_execution(run):
    assert trace.links(run[3]["execution_arn"], None, local=True)[-1] == "page       .local/report.html#execution-3"
    assert trace.links(ARN, None, local=True) == [f"execution  {ARN}"]
