"""The definition itself, and against the template, the functions and their tests."""

import ast
import random
import re
import subprocess
import sys

import pytest
from jsonata import Jsonata

from documents import DEFINITION, DEFINITION_FILE, LAMBDA_STATES, RESOURCES, ROOT, STATES

MACHINE = RESOURCES["ClassifyImageStateMachine"]["Properties"]
MODULES = {path.stem: ast.parse(path.read_text()) for path in (ROOT / "functions").glob("*.py")}
# https://docs.aws.amazon.com/step-functions/latest/dg/concepts-error-handling.html and .../dg/connect-lambda.html
LAMBDA_ERRORS = {
    "Lambda.AWSLambdaException",
    "Lambda.ClientExecutionTimeoutException",
    "Lambda.SdkClientException",
    "Lambda.ServiceException",
    "Lambda.TooManyRequestsException",
    "Lambda.Unknown",
    "Sandbox.Timedout",
    "States.Timeout",
}
INTEGRATION_ERRORS = {"States.TaskFailed", "States.Timeout"}  # TaskFailed: any other error of SQS or EventBridge
NOT_STATES = ("StartExecution", "RecordOutcome")  # EventBridge invokes them before and after an execution
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
    for module in MODULES.values():
        for node in ast.walk(module):
            if isinstance(node, ast.ClassDef) and node.bases and node.bases[0].id.endswith(("Exception", "Error")):
                yield node.name


def raised_by(module):
    """The functions' exception classes that a module can raise, itself or through the siblings that it imports.

    A class counts if the code uses it, in a `raise` or in a table of errors. To define, import or catch it is no use.
    """
    nodes = list(ast.walk(MODULES[module]))
    handlers = [node for node in nodes if isinstance(node, ast.ExceptHandler) and node.type]
    caught = [name for handler in handlers for name in ast.walk(handler.type)]
    used = {node.id for node in nodes if isinstance(node, ast.Name) and node not in caught}
    imported = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    imported |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return (used & set(exception_names())).union(*map(raised_by, imported & set(MODULES)))


def retried(state):
    """The errors that a state retries."""
    return {error for retrier in state.get("Retry", []) for error in retrier["ErrorEquals"]}


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
    assert functions == {f"{name}Function" for name in [*LAMBDA_STATES, *NOT_STATES]}


@pytest.mark.parametrize("function", NOT_STATES)
def test_one_name_leads_from_a_function_that_is_no_state_to_its_event_and_test(function):
    module = snake_case(function)
    assert RESOURCES[f"{function}Function"]["Properties"]["Handler"] == f"{module}.lambda_handler"
    for path in (f"functions/{module}.py", f"events/{module}.json", f"tests/unit/test_{module}.py"):
        assert (ROOT / path).is_file(), path


@pytest.mark.parametrize("state", LAMBDA_STATES)
def test_a_state_times_out_shortly_after_its_function(state):
    assert 0 < STATES[state]["TimeoutSeconds"] - RESOURCES[f"{state}Function"]["Properties"]["Timeout"] <= 5


def test_every_task_has_a_timeout_and_tasks_of_a_kind_retry_alike_but_for_their_own_errors():
    tasks = {name: state for name, state in STATES.items() if state["Type"] == "Task"}
    assert all("TimeoutSeconds" in state for state in tasks.values())
    own_errors = set(exception_names())
    for kind, errors in ((LAMBDA_STATES, LAMBDA_ERRORS), (tasks.keys() - LAMBDA_STATES, INTEGRATION_ERRORS)):
        (first, *others) = [
            [
                retrier | {"ErrorEquals": common}
                for retrier in tasks[name]["Retry"]
                if (common := set(retrier["ErrorEquals"]) - own_errors)
            ]
            for name in kind
        ]
        assert all(other == first for other in others)
        assert set().union(*(retrier["ErrorEquals"] for retrier in first)) == errors


def test_every_error_of_the_functions_is_either_retried_or_permanent():
    own_errors = set(exception_names())
    all_retried = set().union(*map(retried, STATES.values()))
    assert all_retried - LAMBDA_ERRORS - INTEGRATION_ERRORS == own_errors - PERMANENT_ERRORS
    assert own_errors >= PERMANENT_ERRORS


def test_a_state_retries_exactly_the_transient_errors_that_its_function_can_raise():
    for name, state in STATES.items():
        raised = raised_by(snake_case(name)) if name in LAMBDA_STATES else set()
        assert retried(state) - LAMBDA_ERRORS - INTEGRATION_ERRORS == raised - PERMANENT_ERRORS, name


def test_the_errors_that_a_function_can_raise_are_found():
    assert raised_by("check_confidence") == {"InvalidInputError", "EndpointResponseError"}
    assert raised_by("retrieve_image") == {name for name in exception_names() if name.startswith(("Image", "Un", "In"))}
    assert raised_by("record_outcome") == set()


def test_retries_back_off_with_jitter():
    for state in STATES.values():
        for retry in state.get("Retry", []):
            assert retry["JitterStrategy"] == "FULL"
            assert retry["BackoffRate"] > 1
            assert retry["MaxDelaySeconds"] >= retry["IntervalSeconds"]


def test_an_execution_survives_an_outage_of_the_endpoint_of_ten_minutes_and_its_retries_are_bounded():
    retries = {retry["ErrorEquals"][0]: retry for retry in STATES["ClassifyImage"]["Retry"]}
    retry = retries["EndpointUnavailableError"]
    ceilings = [
        min(retry["IntervalSeconds"] * retry["BackoffRate"] ** attempt, retry["MaxDelaySeconds"])
        for attempt in range(retry["MaxAttempts"])
    ]
    chance = random.Random(0)
    waits = sorted(sum(chance.uniform(0, ceiling) for ceiling in ceilings) for _ in range(20_000))
    assert waits[0] > 600  # with full jitter; the mean is 25 minutes
    assert sum(ceilings) < DEFINITION["TimeoutSeconds"] / 2
    assert sum(ceilings[:4]) > 20  # a short outage costs seconds, not minutes
    assert retry["MaxAttempts"] * 0.025 / 1000 < 0.001  # US dollars of transitions for an image that fails in the end


@pytest.mark.parametrize("timeout", ["States.Timeout", "Sandbox.Timedout"])
def test_a_timeout_is_retried_once_because_the_same_work_would_take_as_long_again(timeout):
    for name in LAMBDA_STATES:
        (retry,) = [each for each in STATES[name]["Retry"] if timeout in each["ErrorEquals"]]
        assert retry["MaxAttempts"] == 1


def test_no_partition_region_or_account_is_hard_coded():
    text = DEFINITION_FILE.read_text()
    assert "arn:aws:" not in text
    assert not re.search(r"[a-z]{2}-[a-z]+-\d|\d{12}", text)
