"""Lambda: Python functions run under AWS's own runtime client, in the environment that AWS documents.

ministack runs custom runtimes as AWS does (Runtime API, one process for many events) but Python in a worker of its
own, where every exception is a Runtime.HandlerError. So a Python function becomes a custom runtime on awslambdaric.
"""

import http.server
import os
from pathlib import Path

from ministack.core import lambda_runtime
from ministack.services import lambda_svc

from adapter import replaces

BOOTSTRAP = '#!/bin/sh\nexec "$LAMBDA_PYTHON" -m awslambdaric "$_HANDLER"\n'
# What a function sees of this process's environment (prefixes): a foreign AWS_PROFILE or PYTHONPATH must not leak.
INHERITED = ("AWS_ACCESS_KEY", "AWS_SECRET", "AWS_SESSION", "AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL",
             "AWS_XRAY_DAEMON_ADDRESS", "LAMBDA_PYTHON", "LANG", "PATH", "TMPDIR")  # fmt: skip

# The Runtime API answers in two writes; with Nagle's algorithm the second waits 40 ms for an acknowledgement.
http.server.BaseHTTPRequestHandler.disable_nagle_algorithm = True


@replaces(lambda_svc, "_execute_function_warm")
def execute(stock, function, event, request_id):
    is_python = (function.get("config") or function)["Runtime"].startswith("python")
    run = lambda_svc._execute_function_provided_warm if is_python else stock
    return run(function, event, request_id)


@replaces(lambda_runtime, "_worker_class_for")
def worker_class(stock, config):
    return lambda_runtime.ProvidedWorker if config["Runtime"].startswith("python") else stock(config)


@replaces(lambda_svc, "_provided_runtime_code_dir")
def code_dir(stock, code_zip):
    directory = stock(code_zip)
    bootstrap = Path(directory, "bootstrap")
    with lambda_svc._provided_code_lock:  # under which functions are started too: none reads half a file
        if not bootstrap.exists():
            bootstrap.write_text(BOOTSTRAP)
            bootstrap.chmod(0o755)
    return directory


@replaces(lambda_svc, "_provided_worker_env")
def environment(stock, config, directory, port):
    """https://docs.aws.amazon.com/lambda/latest/dg/configuration-envvars.html#configuration-envvars-runtime"""
    declared = (config.get("Environment") or {}).get("Variables") or {}
    logging = config.get("LoggingConfig") or {}
    variables = stock(config, directory, port).items()
    return {
        **{k: v for k, v in variables if k in declared or k not in os.environ or k.startswith(INHERITED)},
        "AWS_CONFIG_FILE": os.devnull,  # and with the next line: nothing from the host's ~/.aws
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EXECUTION_ENV": f"AWS_Lambda_{config['Runtime']}",
        "AWS_LAMBDA_INITIALIZATION_TYPE": "on-demand",
        "AWS_LAMBDA_LOG_FORMAT": logging.get("LogFormat", "Text"),
        "AWS_LAMBDA_LOG_GROUP_NAME": logging.get("LogGroup") or f"/aws/lambda/{config['FunctionName']}",
        "AWS_XRAY_CONTEXT_MISSING": "LOG_ERROR",
        "TZ": ":UTC",
    }


@replaces(lambda_svc, "_throttle_response")
def throttle(stock, *args, **kwargs):
    """A throttled invocation, with the error name that Step Functions gives it."""
    response = stock(*args, **kwargs)
    response["body"]["errorType"] = "Lambda.TooManyRequestsException"
    return response
