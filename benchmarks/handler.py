"""Time one handler in a new process, as in a cold start: python handler.py FOLDER MODULE EVENT CALLS

Prints {"import": ms, "first": ms, "cold": import + first, "warm": median ms of the calls after the first}. This file
imports only what Lambda's runtime has imported before the function, which would otherwise lengthen its import.
"""

import contextlib
import importlib
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from types import SimpleNamespace

import awslambdaric.bootstrap  # noqa: F401

folder, module, event, calls = sys.argv[1:]
sys.path.insert(0, folder)
event = json.loads(event)
context = SimpleNamespace(
    function_name="benchmark",
    memory_limit_in_mb=1024,
    invoked_function_arn="arn:aws:lambda:us-east-1:000000000000:function:benchmark",
    aws_request_id="benchmark",
)


def timed(work: Callable, *arguments: object) -> tuple:
    """The call's duration in ms, and its return value."""
    started = time.perf_counter()
    value = work(*arguments)
    return (time.perf_counter() - started) * 1000, value


with open(os.devnull, "w") as devnull, contextlib.redirect_stdout(devnull):  # the handler's log lines
    imported, handler = timed(importlib.import_module, module)
    first, _ = timed(handler.lambda_handler, event, context)
    warm = statistics.median(timed(handler.lambda_handler, event, context)[0] for _ in range(int(calls)))
print(json.dumps({"import": imported, "first": first, "cold": imported + first, "warm": warm}))
