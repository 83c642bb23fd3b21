"""The table "What works here" of docs/local-stack.md, row by row."""

import json
import re
import subprocess
import time
from types import SimpleNamespace

import pytest
from botocore.exceptions import ClientError

from documents import ROOT
from local.deployment import SAM, STACK_NAME
from local.emulator.processes import clean_environment

GROUP = "works-here"
TABLE = re.findall(r"^\| `(aws [a-z-]+ [a-z-]+)` \|", (ROOT / "docs/local-stack.md").read_text(), re.MULTILINE)


@pytest.fixture(scope="module")
def logs(stack):
    """A log group with three JSON lines and one of text."""
    client = stack.client("logs")
    client.create_log_group(logGroupName=GROUP)
    client.create_log_stream(logGroupName=GROUP, logStreamName="stream")
    lines = [json.dumps({"label": label}) for label in "771"] + ["plain text"]
    events = [{"timestamp": int(time.time() * 1000), "message": line} for line in lines]
    client.put_log_events(logGroupName=GROUP, logStreamName="stream", logEvents=events)
    return SimpleNamespace(client=client, lines=lines)


def matching(logs, pattern):
    return [
        event["message"] for event in logs.client.filter_log_events(logGroupName=GROUP, filterPattern=pattern)["events"]
    ]


def query(logs, text):
    period = {"startTime": 0, "endTime": int(time.time()) + 60}
    started = logs.client.start_query(logGroupName=GROUP, queryString=text, **period)
    rows = logs.client.get_query_results(queryId=started["queryId"])["results"]
    return [{column["field"]: column["value"] for column in row} for row in rows]


def test_log_events_can_be_filtered_by_words_but_not_by_json_fields(logs):
    assert matching(logs, "") == logs.lines
    assert matching(logs, '"plain text"') == ["plain text"]
    assert matching(logs, '{ $.label = "7" }') == logs.lines  # AWS: two


def test_queries_find_messages_but_no_fields_and_no_statistics(logs):
    assert [row["@message"] for row in query(logs, "fields @timestamp, @message")] == logs.lines
    assert {row["label"] for row in query(logs, "fields label")} == {""}  # AWS: 7 and 1
    assert len(query(logs, "stats count() by label")) == len(logs.lines)  # AWS: two


@pytest.mark.parametrize(
    ("service", "operation", "arguments"),
    [
        ("logs", "describe_query_definitions", {}),
        ("logs", "create_export_task", {"logGroupName": GROUP, "fromTime": 0, "to": 1, "destination": "bucket"}),
        ("sagemaker", "list_endpoints", {}),
        ("xray", "get_trace_summaries", {"StartTime": 0, "EndTime": 1}),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_what_is_not_emulated_is_an_error_and_not_a_wrong_answer(stack, service, operation, arguments):
    assert f"aws {service} {operation.replace('_', '-')}" in TABLE
    with pytest.raises(ClientError):
        getattr(stack.client(service), operation)(**arguments)


def test_alarms_on_metrics_are_listed_without_a_state_and_composite_alarms_are_not(workflow):
    cloudwatch, cloudformation = (workflow.stack.client(name) for name in ("cloudwatch", "cloudformation"))
    pages = cloudformation.get_paginator("list_stack_resources").paginate(StackName=STACK_NAME)
    rows = [row for page in pages for row in page["StackResourceSummaries"]]
    names = {row["LogicalResourceId"]: row["PhysicalResourceId"] for row in rows}
    alarms = cloudwatch.describe_alarms(AlarmTypes=["MetricAlarm", "CompositeAlarm"])
    listed = {alarm["AlarmName"]: alarm["StateValue"] for alarm in alarms["MetricAlarms"]}
    assert listed[names["FailureAlarm"]] == "INSUFFICIENT_DATA"  # AWS: OK or ALARM
    assert names["ThrottlesAlarm"] in listed  # on several metrics
    assert alarms["CompositeAlarms"] == [] and names["WorkflowAlarm"] not in listed


def test_an_endpoint_is_described(workflow):
    endpoint = workflow.stack.client("sagemaker").describe_endpoint(EndpointName=workflow.outputs["EndpointName"])
    assert endpoint["EndpointStatus"] == "InService"


@pytest.mark.parametrize(
    ("name", "printed"),
    [("ClassifyImageStateMachine", "Logging is not configured"), ("CheckConfidenceFunction", "confidence checked")],
)
def test_sam_prints_the_logs_of_functions_but_not_of_state_machines(workflow, seven, name, printed):
    workflow.classify("works-here.png", seven)
    command = [*SAM, "logs", "--stack-name", STACK_NAME, "--name", name]
    environment = clean_environment() | workflow.stack.aws_variables | {"SAM_CLI_TELEMETRY": "0"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert printed in done.stdout + done.stderr
