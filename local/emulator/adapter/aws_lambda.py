"""Lambda: run functions under AWS's runtime client, throttle as AWS does, count every invocation.

ministack runs custom runtimes as AWS does (Runtime API, one process for many events), but Python functions in its own
worker, which turns every exception into Runtime.HandlerError. So Python functions run as a custom runtime on
awslambdaric. Their environment is this process's, which processes.py keeps small, plus the template's variables.
"""

import http.server
import json
import os
import random
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ministack.core import lambda_runtime
from ministack.services import eventbridge, lambda_svc

from local.emulator.adapter import override

LONGEST_WAIT = 10  # seconds between two attempts of a throttled event; five minutes on AWS
WAIT_SCALE = float(os.environ.get("SFN_WAIT_SCALE", "1"))  # ministack's, of the state machines' waits
BOOTSTRAP = '#!/bin/sh\nexec "$LAMBDA_PYTHON" -m awslambdaric "$_HANDLER"\n'

# Every function in the template is a Python function.
lambda_svc._execute_function_warm = lambda_svc._execute_function_provided_warm
lambda_runtime._worker_class_for = lambda _config: lambda_runtime.ProvidedWorker

# The Runtime API sends a response in two writes; with Nagle's algorithm the second waits 40 ms for an acknowledgement.
http.server.BaseHTTPRequestHandler.disable_nagle_algorithm = True


@override(lambda_svc, "_provided_runtime_code_dir")
def code_dir(original: Callable[[bytes], str], code_zip: bytes) -> str:
    """Add the bootstrap of a custom runtime to the function's package."""
    directory = original(code_zip)
    bootstrap = Path(directory, "bootstrap")
    with lambda_svc._provided_code_lock:  # also held while functions start, so none reads a partial file
        if not bootstrap.exists():
            bootstrap.write_text(BOOTSTRAP)
            bootstrap.chmod(0o755)
    return directory


@override(lambda_svc, "_reserved_concurrency")
def reserved_concurrency(original: Callable[..., Any], _function: Any, config: dict[str, Any]) -> int | None:
    """Apply the reserved concurrency of a function to its versions, whose own records lack it."""
    return original(lambda_svc._functions.get(config["FunctionName"]), config)


@override(lambda_svc, "_throttle_response")
def throttle(original: Callable[..., dict[str, Any]], *args: Any, **kwargs: Any) -> dict[str, Any]:
    """Give throttled invocations the error name that Step Functions uses."""
    response = original(*args, **kwargs)
    response["body"]["errorType"] = "Lambda.TooManyRequestsException"
    return response


@override(eventbridge, "_dispatch_to_lambda")
def queue_event(_original: Callable[[str, str], None], arn: str, payload: str) -> None:
    """Keep an event for a throttled function and try again, as AWS does with every asynchronous invocation.

    https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-error-handling.html
    """
    function, config, _ = lambda_svc._get_func_record_for_ref(arn)
    if not function or not config:
        return
    record = lambda_svc._execution_record_for_config(function, config)

    def invoke() -> None:
        wait = 1
        while lambda_svc._execute_function_with_config_scope(record, json.loads(payload)).get("throttle"):
            time.sleep(random.uniform(0, wait) * WAIT_SCALE)  # or all events of a burst would try again together
            wait = min(2 * wait, LONGEST_WAIT)

    threading.Thread(target=invoke, daemon=True).start()


@override(lambda_svc, "_emit_lambda_logs")
def emit_logs(
    original: Callable[..., None], function: dict[str, Any], request_id: str, log_text: str, error: bool,
    duration_ms: float, **options: Any,
) -> None:  # fmt: skip
    """Count every invocation, not only those through the Invoke API.

    https://docs.aws.amazon.com/lambda/latest/dg/monitoring-metrics-types.html
    """
    original(function, request_id, log_text, error, duration_ms, **options)
    name = (function.get("config") or function)["FunctionName"]
    count_invocation(name, duration_ms, error, throttle=False)


count_invocation = lambda_svc._emit_lambda_metrics


@override(lambda_svc, "_emit_lambda_metrics")
def emit_metrics(original: Callable[..., None], name: str, duration_ms: float, error: bool, throttle: bool) -> None:
    """Count only throttles here: emit_logs counts the other invocations."""
    if throttle:
        original(name, duration_ms, error, throttle)
