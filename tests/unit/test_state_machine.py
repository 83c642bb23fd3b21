"""The definitions themselves, and against the template, the functions and their tests."""

import ast
import json
import random
import re
import subprocess
import sys

import pytest
from jsonata import Jsonata

from documents import CLASSIFY_BATCH, CLASSIFY_IMAGE, FUNCTIONS, MACHINES, RECORD_OUTCOME, RESOURCES, ROOT, snake_case

each_machine = pytest.mark.parametrize("machine", MACHINES, ids=str)
MAPS = {name: state for name, state in CLASSIFY_BATCH.states.items() if state["Type"] == "Map"}
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
PROCESS_ERRORS = {"Runtime.ExitError"}  # a function killed half-way; batches retry it
EXISTS = {"ErrorEquals": ["DynamoDB.ConditionalCheckFailedException"], "MaxAttempts": 0}  # never retried
THROTTLING = {"DynamoDB.ProvisionedThroughputExceededException", "DynamoDB.ThrottlingException"}
INTEGRATION_ERRORS = {"States.TaskFailed", "States.Timeout"}  # TaskFailed: any other error of the service
NOT_STATES = ("StartExecution", "RecordReview", "PublishReviewMetrics")  # EventBridge or DynamoDB invokes them
EXPRESS_SECONDS = 300  # https://docs.aws.amazon.com/step-functions/latest/dg/choosing-workflow-type.html
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
    """The exception classes of the functions that are states."""
    for name, module in MODULES.items():
        if name in map(snake_case, NOT_STATES):
            continue  # no execution fails with its errors
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
    return (used & set(exception_names())).union(*map(raised_by, imported(module)))


def imported(module):
    """The siblings that a module imports."""
    nodes = list(ast.walk(MODULES[module]))
    names = {node.module for node in nodes if isinstance(node, ast.ImportFrom)}
    names |= {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return names & set(MODULES)


def retried(state):
    """The errors that a state retries."""
    return {error for retrier in retriers(state) for error in retrier["ErrorEquals"]}


def retriers(state):
    return [
        retrier for retrier in state.get("Retry", []) if retrier != EXISTS and set(retrier["ErrorEquals"]) != THROTTLING
    ]


def ceilings(retrier):
    """The longest delay before each attempt of a retrier, in seconds."""
    interval, rate, longest = (retrier[name] for name in ("IntervalSeconds", "BackoffRate", "MaxDelaySeconds"))
    return [min(interval * rate**attempt, longest) for attempt in range(retrier["MaxAttempts"])]


def scopes(definition):
    """A machine's definition and those of its Maps' children: each has a StartAt and States of its own."""
    yield definition
    for state in definition["States"].values():
        if "ItemProcessor" in state:
            yield from scopes(state["ItemProcessor"])


SCOPES = [pytest.param(scope, id=scope["StartAt"]) for machine in MACHINES for scope in scopes(machine.definition)]


@pytest.mark.parametrize("scope", SCOPES)
def test_every_target_is_a_state_and_every_state_is_reached(scope):
    reached, ahead = set(), {scope["StartAt"]}
    while ahead:
        name = ahead.pop()
        assert name in scope["States"]
        reached.add(name)
        ahead |= targets(scope["States"][name]) - reached
    assert reached == set(scope["States"])


@each_machine
def test_names_of_states_are_unique_in_the_whole_machine(machine):
    assert len(machine.states) == sum(len(scope["States"]) for scope in scopes(machine.definition))


@each_machine
def test_every_path_ends(machine):
    for name, state in machine.states.items():
        ends = state.get("End") or state["Type"] in ("Succeed", "Fail")
        assert bool(targets(state | {"Catch": []})) != bool(ends), name


def test_statelint_finds_nothing():
    linted = subprocess.run([sys.executable, ROOT / "tools/lint_states.py"], capture_output=True, text=True)
    assert (linted.returncode, linted.stdout + linted.stderr) == (0, "")


@each_machine
def test_every_jsonata_expression_compiles(machine):
    expressions = [text for text in strings(machine.definition) if text.startswith("{%")]
    assert expressions
    for expression in expressions:
        assert expression.endswith("%}")
        Jsonata(expression[2:-2])


@each_machine
def test_substitutions_of_template_and_definition_are_the_same(machine):
    used = set(re.findall(r"\$\{(\w+)\}", machine.file.read_text()))
    assert used == set(machine.properties["DefinitionSubstitutions"])


@each_machine
def test_one_name_leads_from_a_state_to_its_function_event_and_test(machine):
    for state, function in machine.functions.items():
        module = snake_case(function)
        assert state in (function, f"{function}Of{state.rpartition('Of')[2]}")
        assert machine.properties["DefinitionSubstitutions"][f"{function}FunctionArn"] == {
            "Ref": f"{function}Function.Alias"
        }
        assert RESOURCES[f"{function}Function"]["Properties"]["Handler"] == f"{module}.lambda_handler"
        assert {"LambdaInvokePolicy": {"FunctionName": {"Ref": f"{function}Function"}}} in machine.properties[
            "Policies"
        ]
        for path in (f"functions/{module}.py", f"events/{module}.json", f"tests/unit/test_{module}.py"):
            assert (ROOT / path).is_file(), path


@each_machine
def test_one_name_leads_from_a_machine_to_its_resource_and_the_input_of_an_execution(machine):
    assert machine.properties["DefinitionUri"] == f"statemachine/{machine.file.name}"
    inputs = snake_case(machine.name) + ("" if machine is RECORD_OUTCOME else "_execution")  # its function's, unchanged
    assert (ROOT / f"events/{inputs}.json").is_file()


def test_the_template_has_no_function_that_the_definitions_do_not_use():
    functions = {name for name, resource in RESOURCES.items() if resource["Type"] == "AWS::Serverless::Function"}
    assert functions == {f"{name}Function" for name in [*FUNCTIONS, *NOT_STATES]}


@pytest.mark.parametrize("function", NOT_STATES)
def test_one_name_leads_from_a_function_that_is_no_state_to_its_event_and_test(function):
    module = snake_case(function)
    assert RESOURCES[f"{function}Function"]["Properties"]["Handler"] == f"{module}.lambda_handler"
    for path in (f"functions/{module}.py", f"events/{module}.json", f"tests/unit/test_{module}.py"):
        assert (ROOT / path).is_file(), path


@each_machine
def test_a_state_times_out_shortly_after_its_function(machine):
    for state, function in machine.functions.items():
        timeout = RESOURCES[f"{function}Function"]["Properties"]["Timeout"]
        assert 0 < machine.states[state]["TimeoutSeconds"] - timeout <= 5


def test_two_attempts_of_a_batch_fit_into_the_five_minutes_of_its_child():
    for state, function in CLASSIFY_BATCH.functions.items():
        if function == "ClassifyBatch":
            assert 2 * CLASSIFY_BATCH.states[state]["TimeoutSeconds"] < EXPRESS_SECONDS


def test_an_outcome_reaches_its_function_or_the_failure_queue_before_its_express_execution_times_out():
    """Whatever fails, and however long each attempt takes; but a throttled one is refused at once."""
    seconds = 0
    for state in RECORD_OUTCOME.states.values():
        if state["Type"] == "Task":
            seconds += state["TimeoutSeconds"]
            for retrier in retriers(state):
                is_throttled = retrier["ErrorEquals"] == ["Lambda.TooManyRequestsException"]
                seconds += sum(ceilings(retrier))
                seconds += 0 if is_throttled else retrier["MaxAttempts"] * state["TimeoutSeconds"]
    assert RECORD_OUTCOME.properties["Type"] == "EXPRESS"
    assert 250 < seconds < EXPRESS_SECONDS - 10


def test_a_refused_claim_is_not_retried_and_succeeds_and_every_other_error_reaches_the_failure_queue():
    claim = RECORD_OUTCOME.states["ClaimOutcome"]
    assert claim["Retry"][0] == EXISTS
    assert claim["Catch"][0] == {"ErrorEquals": EXISTS["ErrorEquals"], "Next": "AlreadyRecorded"}
    assert RECORD_OUTCOME.states["AlreadyRecorded"]["Type"] == "Succeed"
    (other,) = claim["Catch"][1:]
    assert RECORD_OUTCOME.states["RecordOutcome"]["Catch"] == [other]
    assert (other["ErrorEquals"], other["Next"]) == (["States.ALL"], "SendToFailureQueue")


@pytest.mark.parametrize("scope", SCOPES)
def test_every_task_has_a_timeout_and_tasks_of_a_kind_retry_alike_but_for_their_own_errors(scope):
    tasks = {name: state for name, state in scope["States"].items() if state["Type"] == "Task"}
    assert all("TimeoutSeconds" in state for state in tasks.values())
    own_errors = set(exception_names())
    invoking = {name for name, state in tasks.items() if ":lambda:invoke" in state["Resource"]}
    for kind, errors in ((invoking, LAMBDA_ERRORS), (tasks.keys() - invoking, INTEGRATION_ERRORS)):
        alike = [
            [
                retrier | {"ErrorEquals": common}
                for retrier in retriers(tasks[name])
                if (common := set(retrier["ErrorEquals"]) - own_errors)
            ]
            for name in kind
        ]
        assert all(other == alike[0] for other in alike)
        expected = errors | PROCESS_ERRORS if scope["StartAt"].startswith("ClassifyBatchOf") else errors
        assert all(set().union(*(retrier["ErrorEquals"] for retrier in each)) == expected for each in alike)


def test_the_maps_differ_only_in_their_source():
    """A reader's resource is a constant, so each kind of source needs a Map of its own."""

    def common(state):
        own = ("ItemReader", "Comment", "Label")
        text = json.dumps({name: value for name, value in state.items() if name not in own})
        return text.replace(f"Of{state['Label']}", "").replace('"url_encoded": true', '"url_encoded": false')

    assert len(MAPS) == 4
    assert len({common(state) for state in MAPS.values()}) == 1
    encoded = {name for name, state in MAPS.items() if state["ItemBatcher"]["BatchInput"]["url_encoded"]}
    assert encoded == {"ClassifyInventory"}


@pytest.mark.parametrize("name", MAPS)
def test_a_map_is_never_repeated_or_caught(name):
    """A retry would classify every image again, and a Map that was left through a Catch cannot be redriven."""
    assert not {"Retry", "Catch"} & set(MAPS[name])
    assert MAPS[name]["ItemProcessor"]["ProcessorConfig"] == {"Mode": "DISTRIBUTED", "ExecutionType": "EXPRESS"}
    assert re.fullmatch(r"\w{1,40}", MAPS[name]["Label"])
    assert MAPS[name]["ResultWriter"]["WriterConfig"] == {"Transformation": "COMPACT", "OutputType": "JSONL"}


def test_each_map_reads_its_kind_of_source():
    """https://docs.aws.amazon.com/step-functions/latest/dg/input-output-itemreader.html"""
    assert {name: state["ItemReader"].get("ReaderConfig") for name, state in MAPS.items()} == {
        "ClassifyPrefix": None,
        "ClassifyCsv": {"InputType": "CSV", "CSVHeaderLocation": "FIRST_ROW"},
        "ClassifyJsonLines": {"InputType": "JSONL"},
        "ClassifyInventory": {"InputType": "MANIFEST"},
    }


def test_every_error_of_the_functions_is_either_retried_or_permanent():
    own_errors = set(exception_names())
    all_retried = {error for machine in MACHINES for state in machine.states.values() for error in retried(state)}
    assert all_retried - LAMBDA_ERRORS - PROCESS_ERRORS - INTEGRATION_ERRORS == own_errors - PERMANENT_ERRORS
    assert own_errors >= PERMANENT_ERRORS


@each_machine
def test_a_state_retries_exactly_the_transient_errors_that_its_function_can_raise(machine):
    for name, state in machine.states.items():
        raised = raised_by(snake_case(machine.functions[name])) if name in machine.functions else set()
        own = retried(state) - LAMBDA_ERRORS - PROCESS_ERRORS - INTEGRATION_ERRORS
        assert own == raised - PERMANENT_ERRORS, name


def test_the_errors_that_a_function_can_raise_are_found():
    assert raised_by("check_confidence") == {"InvalidInputError", "EndpointResponseError"}
    assert raised_by("retrieve_image") == {name for name in exception_names() if name.startswith(("Image", "Un", "In"))}
    assert raised_by("record_outcome") == set()


@each_machine
def test_retries_back_off_with_jitter(machine):
    for state in machine.states.values():
        for retry in retriers(state):
            assert retry["JitterStrategy"] == "FULL"
            assert retry["BackoffRate"] > 1
            assert retry["MaxDelaySeconds"] >= retry["IntervalSeconds"]


@each_machine
def test_an_item_is_put_only_once_and_an_existing_one_is_no_failure(machine):
    """Retriers are matched before catchers, so this error needs one that does not retry."""
    for state in machine.states.values():
        if state.get("Resource", "").endswith("dynamodb:putItem"):
            assert "ConditionExpression" in state["Arguments"]
            assert state["Retry"][0] == EXISTS
            assert {*EXISTS["ErrorEquals"], "States.ALL"} & set(state["Catch"][0]["ErrorEquals"])
            caught = state["Catch"][0]["Next"]
            assert caught == state["Next"] or machine.states[caught]["Type"] == "Succeed"


def test_a_throttled_review_table_is_retried_as_patiently_as_a_throttled_endpoint():
    """But not for an audit, which keeps an accepted image waiting."""
    (endpoint,) = [
        each
        for each in CLASSIFY_IMAGE.states["ClassifyImage"]["Retry"]
        if "EndpointThrottledError" in each["ErrorEquals"]
    ]
    (table,) = [
        each for each in CLASSIFY_IMAGE.states["SendToReview"]["Retry"] if set(each["ErrorEquals"]) == THROTTLING
    ]
    assert table | {"ErrorEquals": None} == endpoint | {"ErrorEquals": None}
    assert not THROTTLING & {
        error for each in CLASSIFY_IMAGE.states["SendToAudit"]["Retry"] for error in each["ErrorEquals"]
    }


def test_an_accepted_image_stays_accepted_whatever_becomes_of_its_audit():
    (caught,) = CLASSIFY_IMAGE.states["SendToAudit"]["Catch"]
    assert caught["ErrorEquals"] == ["States.ALL"]
    (caught,) = CLASSIFY_IMAGE.states["SendToReview"]["Catch"]
    assert caught["ErrorEquals"] == EXISTS["ErrorEquals"]  # any other error fails the execution


def test_an_execution_survives_an_outage_of_the_endpoint_of_ten_minutes_and_its_retries_are_bounded():
    retries = {retry["ErrorEquals"][0]: retry for retry in CLASSIFY_IMAGE.states["ClassifyImage"]["Retry"]}
    retry = retries["EndpointUnavailableError"]
    longest = ceilings(retry)
    chance = random.Random(0)
    waits = sorted(sum(chance.uniform(0, ceiling) for ceiling in longest) for _ in range(20_000))
    assert waits[0] > 600  # with full jitter; the mean is 25 minutes
    assert sum(longest) < CLASSIFY_IMAGE.definition["TimeoutSeconds"] / 2
    assert sum(longest[:4]) > 20  # a short outage costs seconds, not minutes
    assert retry["MaxAttempts"] * 0.025 / 1000 < 0.001  # US dollars of transitions for an image that fails in the end


@each_machine
@pytest.mark.parametrize("timeout", ["States.Timeout", "Sandbox.Timedout"])
def test_a_timeout_is_retried_once_because_the_same_work_would_take_as_long_again(machine, timeout):
    for name in machine.functions:
        (retry,) = [each for each in machine.states[name]["Retry"] if timeout in each["ErrorEquals"]]
        assert retry["MaxAttempts"] == 1


@each_machine
def test_no_partition_region_or_account_is_hard_coded(machine):
    text = machine.file.read_text()
    assert "arn:aws:" not in text
    assert not re.search(r"[a-z]{2}-[a-z]+-\d|\d{12}", text)
