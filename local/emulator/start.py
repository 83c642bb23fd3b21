"""Start ministack, the AWS emulator, extended by adapter/ with what the template needs and ministack lacks.

The caller sets ministack's environment variables (GATEWAY_PORT, BIND_HOST ...); the functions inherit them.
"""

import importlib
import runpy
import sys
from importlib.metadata import version

ADAPTED_VERSION = "1.5.33"

if __name__ == "__main__":
    if version("ministack") != ADAPTED_VERSION:
        sys.exit(f"local/emulator/adapter/ requires ministack {ADAPTED_VERSION}; {version('ministack')} is installed")
    # The gateway last: it imports ministack's application, which binds names that the others replace.
    for service in ("aws_lambda", "cloudformation", "iam", "logs", "s3", "stepfunctions", "distributed_map", "gateway"):
        importlib.import_module(f"local.emulator.adapter.{service}")
    runpy.run_module("ministack", run_name="__main__")
