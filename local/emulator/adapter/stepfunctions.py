"""Step Functions: retry delays, the payload size limit, the resources of events, execution logs, traces, and Express.

https://docs.aws.amazon.com/step-functions/latest/dg/concepts-error-handling.html
https://docs.aws.amazon.com/step-functions/latest/dg/connect-eventbridge.html
https://docs.aws.amazon.com/step-functions/latest/dg/cw-logs.html
https://docs.aws.amazon.com/step-functions/latest/dg/concepts-xray-tracing.html
https://docs.aws.amazon.com/step-functions/latest/dg/choosing-workflow-type.html
"""

import contextvars
import functools
import itertools
import json
import queue
import random
import secrets
import threading
import time
from collections.abc import Callable
from operator import itemgetter
from typing import Any

import botocore.session
from botocore.exceptions import ClientError
from ministack.services import lambda_svc
from ministack.services import stepfunctions as service

from local.emulator.adapter import override

PAYLOAD_LIMIT = 262_144  # bytes
LOGGED_AT_ONCE = 500  # events; a request for each would keep the emulator busy for minutes after a burst
EXECUTION_DATA = ("input", "output", "parameters", "cause")
trace_root: contextvars.ContextVar[str | None] = contextvars.ContextVar("trace_root", default=None)
trace_header: contextvars.ContextVar[str | None] = contextvars.ContextVar("trace_header", default=None)
task_context: contextvars.ContextVar[dict[str, Any]] = contextvars.ContextVar("task_context")
log_queue: queue.SimpleQueue[tuple[str, str, dict[str, Any]]] = queue.SimpleQueue()


@override(service, "_find_matching_retrier")
def find_retrier(
    original: Callable[..., tuple[dict[str, Any] | None, int]], retriers: list[Any], error: str, counts: dict[int, int]
) -> tuple[dict[str, Any] | None, int]:
    """Compute the retrier's next delay with MaxDelaySeconds and JitterStrategy."""
    retrier, index = original(retriers, error, counts)
    if retrier:
        delay = retrier.get("IntervalSeconds", 1) * retrier.get("BackoffRate", 2.0) ** counts.get(index, 0)
        delay = min(delay, retrier.get("MaxDelaySeconds", delay))
        delay *= random.random() if retrier.get("JitterStrategy") == "FULL" else 1
        retrier = retrier | {"IntervalSeconds": delay, "BackoffRate": 1}
    return retrier, index


@override(service, "_error_matches")
def error_matches(original: Callable[[list[str], str], bool], names: list[str], error: str) -> bool:
    """Match States.DataLimitExceeded by its name only: States.ALL and States.TaskFailed do not catch it."""
    return error in names if error == "States.DataLimitExceeded" else original(names, error)


@override(service, "_run_execution")
def run_execution(original: Callable[[str], None], arn: str) -> None:
    """Give the execution one trace: every state machine of the template is traced. Forget Express ones at their end."""
    trace_root.set(f"1-{int(time.time()):08x}-{secrets.token_hex(12)}")
    original(arn)
    execution = service._executions[arn]
    if is_express(execution) and not execution.get("sync"):  # StartSyncExecution returns its end
        del service._executions[arn]


def is_express(execution: dict[str, Any]) -> bool:
    return bool(service._state_machines[execution["stateMachineArn"]]["type"] == "EXPRESS")


@override(service, "_emit_execution_status_event")
def emit_status_event(original: Callable[[dict[str, Any]], None], execution: dict[str, Any]) -> None:
    """EventBridge gets events of Standard executions only."""
    if not is_express(execution):
        original(execution)


@override(service, "_call_lambda")
def call_lambda(original: Callable[[str, Any], Any], function: str, event: Any) -> Any:
    """Pass the execution's trace to the function. EventBridge's targets, as on AWS, have their own."""
    root = trace_root.get()
    token = trace_header.set(root and f"Root={root};Parent={secrets.token_hex(8)};Sampled=1")
    try:
        return original(function, event)
    finally:
        trace_header.reset(token)


@override(lambda_svc, "_xray_trace_id_for_invocation")
def trace_of_invocation(original: Callable[..., str | None], config: dict[str, Any], header: str | None = None) -> Any:
    return original(config, header or trace_header.get())


def check_size(value: Any) -> None:
    if len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()) > PAYLOAD_LIMIT:
        raise service._ExecutionError("States.DataLimitExceeded", f"The payload exceeds {PAYLOAD_LIMIT} bytes.")


@override(service, "_execute_task")
def execute_task(original: Callable[..., Any], state: Any, data: Any, execution: Any, context: dict[str, Any]) -> Any:
    task_context.set(context)
    return original(state, data, execution, context)


@override(service, "_invoke_resource")
def invoke(original: Callable[[str, Any], Any], resource: str, data: Any) -> Any:
    if resource.endswith(":events:putEvents"):
        arns = [task_context.get()[kind]["Id"] for kind in ("StateMachine", "Execution")]
        entries = [entry | {"Resources": [*entry.get("Resources", []), *arns]} for entry in data["Entries"]]
        data = data | {"Entries": entries}
    check_size(data)
    result = original(resource, data)
    check_size(result)
    return result


@override(service, "_add_event")
def add_event(
    original: Callable[..., dict[str, Any]], execution: dict[str, Any], event_type: str, details: Any = None
) -> dict[str, Any]:
    if event_type.endswith("StateExited"):
        check_size(json.loads(details["stateExitedEventDetails"]["output"]))
    event = original(execution, event_type, details)
    log(execution, event)
    return event


def log(execution: dict[str, Any], event: dict[str, Any]) -> None:
    arn = execution["stateMachineArn"].split("/")[0]  # a Distributed Map's child has MACHINE/LABEL
    machine = service._state_machines[arn]
    # The keys are in PascalCase from CloudFormation and in camelCase from CreateStateMachine.
    config = {key.lower(): value for key, value in machine["loggingConfiguration"].items()}
    if config["level"] != "ALL":  # the only level that the template uses
        return
    details: dict[str, Any] = next((value for key, value in event.items() if key.endswith("EventDetails")), {})
    if not config.get("includeexecutiondata"):
        details = {key: value for key, value in details.items() if key not in EXECUTION_DATA}
    now = int(time.time() * 1000)
    message = {"id": str(event["id"]), "type": event["type"], "details": details, "event_timestamp": str(now)}
    message |= {"previous_event_id": str(event["id"] - 1), "execution_arn": execution["executionArn"]}
    (destination,) = config["destinations"][0].values()
    (group_arn,) = destination.values()
    log_queue.put((group_arn, machine["name"], {"timestamp": now, "message": json.dumps(message)}))


def deliver_logs() -> None:
    """Send the queued events to the CloudWatch Logs API; as on AWS, executions do not wait for their logs."""
    session, created = botocore.session.get_session(), set()
    client = functools.cache(session.create_client)
    while True:
        waiting = [log_queue.get()]
        while len(waiting) < LOGGED_AT_ONCE and not log_queue.empty():
            waiting.append(log_queue.get())
        waiting.sort(key=lambda each: (*each[:2], each[2]["timestamp"]))
        for (group_arn, machine), events in itertools.groupby(waiting, itemgetter(0, 1)):
            stream = {"logGroupName": group_arn.split(":")[6], "logStreamName": f"states/{machine}"}
            logs = client("logs", region_name=group_arn.split(":")[3])
            try:
                if group_arn + machine not in created:
                    logs.create_log_stream(**stream)
                    created.add(group_arn + machine)
                logs.put_log_events(**stream, logEvents=[event for *_, event in events])
            except ClientError as error:
                service.logger.warning("No execution log for %s: %s", machine, error)


threading.Thread(target=deliver_logs, daemon=True).start()
