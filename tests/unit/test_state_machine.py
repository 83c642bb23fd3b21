"""The definition by itself, and against the template, the functions and their tests."""

import ast
import re
import subprocess
import sys

import pytest
from jsonata import Jsonata

from documents import DEFINITION, DEFINITION_FILE, LAMBDA_STATES, RESOURCES, ROOT, STATES

MACHINE = RESOURCES["ClassifyImageStateMachine"]["Properties"]
# https://docs.aws.amazon.com/step-functions/latest/dg/concepts-error-handling.html and .../dg/connect-lambda.html
AWS_ERRORS = {
    "Lambda.AWSLambdaException",
    "Lambda.ClientExecutionTimeoutException",
    "Lambda.SdkClientException",
    "Lambda.ServiceException",
    "Lambda.TooManyRequestsException",
    "Lambda.Unknown",
    "Sandbox.Timedout",
    "States.TaskFailed",
    "States.Timeout",
}
PERMANENT_ERRORS = {
    "EndpointAccessDeniedError",
    "EndpointNotConfiguredError",
    "EndpointResponseError",
    "ImageAccessDeniedError",
    "ImageNotFoundError",
    "ImageTooLargeError",
    "InvalidInputError",
    "UnsupportedImageError",
}


def snake_case(name):
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def targets(state):
    choices = [choice["Next"] for choice in state.get("Choices", []) + state.get("Catch", [])]
    return {target for target in (state.get("Next"), state.get("Default"), *choices) if target}


def strings(node):
    if isinstance(node, dict):
        for value in node.values():
            yield from strings(value)
    elif isinstance(node, list):
        for value in node:
            yield from strings(value)
    elif isinstance(node, str):
        yield node


def exception_names():
    """The exception classes of the functions."""
    for path in (ROOT / "functions").glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ClassDef) and [base.id for base in node.bases] == ["Exception"]:
                yield node.name


def test_every_target_is_a_state_and_every_state_is_reached():
    reached, ahead = set(), {DEFINITION["StartAt"]}
    while ahead:
        name = ahead.pop()
        assert name in STATES
        reached.add(name)
        ahead |= targets(STATES[name]) - reached
    assert reached == set(STATES)


def test_every_path_ends():
    for name, state in STATES.items():
        ends = state.get("End") or state["Type"] in ("Succeed", "Fail")
        assert bool(targets(state)) != bool(ends), name


def test_statelint_finds_nothing():
    linted = subprocess.run(
        [sys.executable, "-m", "statelint", "--ignore=FLOAT", DEFINITION_FILE], capture_output=True, text=True
    )
    assert (linted.returncode, linted.stdout + linted.stderr) == (0, "")


def test_every_jsonata_expression_compiles():
    expressions = [text for text in strings(DEFINITION) if text.startswith("{%")]
    assert len(expressions) > 10
    for expression in expressions:
        assert expression.endswith("%}")
        Jsonata(expression[2:-2])


def test_substitutions_of_template_and_definition_are_the_same():
    used = set(re.findall(r"\$\{(\w+)\}", DEFINITION_FILE.read_text()))
    assert used == set(MACHINE["DefinitionSubstitutions"])


@pytest.mark.parametrize("state", LAMBDA_STATES)
def test_one_name_leads_from_the_state_to_its_function_event_and_test(state):
    module = snake_case(state)
    assert STATES[state]["Arguments"]["FunctionName"] == f"${{{state}FunctionArn}}"
    assert MACHINE["DefinitionSubstitutions"][f"{state}FunctionArn"] == {"Ref": f"{state}Function.Alias"}
    assert RESOURCES[f"{state}Function"]["Properties"]["Handler"] == f"{module}.lambda_handler"
    assert {"LambdaInvokePolicy": {"FunctionName": {"Ref": f"{state}Function"}}} in MACHINE["Policies"]
    for path in (f"functions/{module}.py", f"events/{module}.json", f"tests/unit/test_{module}.py"):
        assert (ROOT / path).is_file(), path


def test_the_template_has_no_function_that_the_definition_does_not_use():
    functions = {name for name, resource in RESOURCES.items() if resource["Type"] == "AWS::Serverless::Function"}
    assert functions == {f"{state}Function" for state in LAMBDA_STATES} | {"RecordOutcomeFunction"}


def test_an_outcome_is_recorded_under_one_name_too():
    assert RESOURCES["RecordOutcomeFunction"]["Properties"]["Handler"] == "record_outcome.lambda_handler"
    for path in ("functions/record_outcome.py", "events/record_outcome.json", "tests/unit/test_record_outcome.py"):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("state", LAMBDA_STATES)
def test_a_state_waits_a_little_longer_than_its_function_may_take(state):
    assert 0 < STATES[state]["TimeoutSeconds"] - RESOURCES[f"{state}Function"]["Properties"]["Timeout"] <= 5


def test_every_task_has_a_timeout_and_tasks_of_a_kind_retry_alike():
    tasks = {name: state for name, state in STATES.items() if state["Type"] == "Task"}
    assert all("TimeoutSeconds" in state for state in tasks.values())
    for kind in (LAMBDA_STATES, tasks.keys() - LAMBDA_STATES):
        (first, *others) = [tasks[name]["Retry"] for name in kind]
        assert all(other == first for other in others)


def test_every_error_of_the_functions_is_either_retried_or_permanent():
    retried = {error for state in STATES.values() for retry in state.get("Retry", []) for error in retry["ErrorEquals"]}
    assert retried - AWS_ERRORS == set(exception_names()) - PERMANENT_ERRORS
    assert set(exception_names()) >= PERMANENT_ERRORS


def test_retries_back_off_with_jitter():
    for state in STATES.values():
        for retry in state.get("Retry", []):
            assert retry["JitterStrategy"] == "FULL"
            assert retry["BackoffRate"] > 1
            assert retry["MaxDelaySeconds"] >= retry["IntervalSeconds"]


def test_no_partition_region_or_account_is_typed_in():
    text = DEFINITION_FILE.read_text()
    assert "arn:aws:" not in text
    assert not re.search(r"[a-z]{2}-[a-z]+-\d|\d{12}", text)
