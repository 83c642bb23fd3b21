"""Lambda: functions run under AWS's own runtime client, throttling has its name, every invocation is counted.

ministack runs custom runtimes as AWS does (Runtime API, one process for many events) but Python in a worker of its
own, where every exception is a Runtime.HandlerError. So a Python function becomes a custom runtime on awslambdaric.
Its environment is this process's, which processes.py keeps small, and what the template declares.
"""

import http.server
from pathlib import Path

from ministack.core import lambda_runtime
from ministack.services import lambda_svc

from local.emulator.adapter import replaces

BOOTSTRAP = '#!/bin/sh\nexec "$LAMBDA_PYTHON" -m awslambdaric "$_HANDLER"\n'

# Every function of the template is a Python function.
lambda_svc._execute_function_warm = lambda_svc._execute_function_provided_warm
lambda_runtime._worker_class_for = lambda _config: lambda_runtime.ProvidedWorker

# The Runtime API answers in two writes; with Nagle's algorithm the second waits 40 ms for an acknowledgement.
http.server.BaseHTTPRequestHandler.disable_nagle_algorithm = True


@replaces(lambda_svc, "_provided_runtime_code_dir")
def code_dir(stock, code_zip):
    directory = stock(code_zip)
    bootstrap = Path(directory, "bootstrap")
    with lambda_svc._provided_code_lock:  # under which functions are started too: none reads half a file
        if not bootstrap.exists():
            bootstrap.write_text(BOOTSTRAP)
            bootstrap.chmod(0o755)
    return directory


@replaces(lambda_svc, "_reserved_concurrency")
def reserved_concurrency(stock, _function, config):
    """A function's versions share what is reserved for it; a version's own record says nothing of it."""
    return stock(lambda_svc._functions.get(config["FunctionName"]), config)


@replaces(lambda_svc, "_throttle_response")
def throttle(stock, *args, **kwargs):
    """A throttled invocation, with the error name that Step Functions gives it."""
    response = stock(*args, **kwargs)
    response["body"]["errorType"] = "Lambda.TooManyRequestsException"
    return response


@replaces(lambda_svc, "_emit_lambda_logs")
def emit_logs(stock, function, request_id, log_text, error, duration_ms, **more):
    """https://docs.aws.amazon.com/lambda/latest/dg/monitoring-metrics-types.html: all invocations, not only Invoke's"""
    stock(function, request_id, log_text, error, duration_ms, **more)
    name = (function.get("config") or function)["FunctionName"]
    count_invocation(name, duration_ms, error, throttle=False)


count_invocation = lambda_svc._emit_lambda_metrics


@replaces(lambda_svc, "_emit_lambda_metrics")
def emit_metrics(stock, name, duration_ms, error, throttle):
    if throttle:
        stock(name, duration_ms, error, throttle)
