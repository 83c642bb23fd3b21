"""Start ministack, the emulated AWS, with what the template needs and ministack lacks (adapter/).

Its environment (GATEWAY_PORT, BIND_HOST ...) is ministack's own, set by the caller, and goes on to the functions.
"""

import importlib
import runpy
import sys
from importlib.metadata import version

WRITTEN_FOR = "1.5.33"

if __name__ == "__main__":
    if version("ministack") != WRITTEN_FOR:
        sys.exit(f"local/emulator/adapter/ needs ministack {WRITTEN_FOR}, not {version('ministack')}; install that one")
    for service in ("aws_lambda", "cloudformation", "stepfunctions"):
        importlib.import_module(f"local.emulator.adapter.{service}")
    runpy.run_module("ministack", run_name="__main__")
