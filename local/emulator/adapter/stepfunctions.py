"""Step Functions: retry delays, the limit of a payload, and the logs of executions.

https://docs.aws.amazon.com/step-functions/latest/dg/concepts-error-handling.html
https://docs.aws.amazon.com/step-functions/latest/dg/cw-logs.html
"""

import json
import queue
import random
import threading
import time

import botocore.session
from botocore.exceptions import ClientError
from ministack.services import stepfunctions as service

from local.emulator.adapter import replaces

PAYLOAD_LIMIT = 262_144  # bytes
EXECUTION_DATA = ("input", "output", "parameters", "cause")
log_queue = queue.SimpleQueue()


@replaces(service, "_find_matching_retrier")
def find_retrier(stock, retriers, error, counts):
    """The retrier, its next delay worked out with MaxDelaySeconds and JitterStrategy."""
    retrier, index = stock(retriers, error, counts)
    if retrier:
        delay = retrier.get("IntervalSeconds", 1) * retrier.get("BackoffRate", 2.0) ** counts.get(index, 0)
        delay = min(delay, retrier.get("MaxDelaySeconds", delay))
        delay *= random.random() if retrier.get("JitterStrategy") == "FULL" else 1
        retrier = retrier | {"IntervalSeconds": delay, "BackoffRate": 1}
    return retrier, index


@replaces(service, "_error_matches")
def error_matches(stock, names, error):
    """Neither States.ALL nor States.TaskFailed catches the payload limit, which is terminal."""
    return error in names if error == "States.DataLimitExceeded" else stock(names, error)


def check_size(value):
    if len(json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()) > PAYLOAD_LIMIT:
        raise service._ExecutionError("States.DataLimitExceeded", f"The payload exceeds {PAYLOAD_LIMIT} bytes.")


@replaces(service, "_invoke_resource")
def invoke(stock, resource, data):
    check_size(data)
    result = stock(resource, data)
    check_size(result)
    return result


@replaces(service, "_add_event")
def add_event(stock, execution, event_type, details=None):
    if event_type.endswith("StateExited"):
        check_size(json.loads(details["stateExitedEventDetails"]["output"]))
    event = stock(execution, event_type, details)
    log(execution, event)
    return event


def log(execution, event):
    machine = service._state_machines[execution["stateMachineArn"]]
    # Keys in PascalCase from CloudFormation, in camelCase from CreateStateMachine.
    config = {key.lower(): value for key, value in machine["loggingConfiguration"].items()}
    if config["level"] != "ALL":  # the only level that the template uses
        return
    details = next((value for key, value in event.items() if key.endswith("EventDetails")), {})
    if not config.get("includeexecutiondata"):
        details = {key: value for key, value in details.items() if key not in EXECUTION_DATA}
    now = int(time.time() * 1000)
    message = {"id": str(event["id"]), "type": event["type"], "details": details, "event_timestamp": str(now)}
    message |= {"previous_event_id": str(event["id"] - 1), "execution_arn": execution["executionArn"]}
    (destination,) = config["destinations"][0].values()
    (group_arn,) = destination.values()
    log_queue.put((group_arn, machine["name"], {"timestamp": now, "message": json.dumps(message)}))


def deliver_logs():
    """Put the queued events through the API of CloudWatch Logs; as on AWS, executions do not wait for their logs."""
    session, known = botocore.session.get_session(), set()
    while True:
        group_arn, machine, event = log_queue.get()
        stream = {"logGroupName": group_arn.split(":")[6], "logStreamName": f"states/{machine}"}
        logs = session.create_client("logs", region_name=group_arn.split(":")[3])
        try:
            if group_arn + machine not in known:
                logs.create_log_stream(**stream)
                known.add(group_arn + machine)
            logs.put_log_events(**stream, logEvents=[event])
        except ClientError as error:
            service.logger.warning("No execution log for %s: %s", machine, error)


threading.Thread(target=deliver_logs, daemon=True).start()
