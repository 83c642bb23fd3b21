"""Compile the functions that sam build packed: python3.13 tools/compile.py .aws-sam/build

Lambda's /var/task is read-only: without this, every cold start compiles every module again. The Python that runs this
must be the functions' runtime. Each file is compiled for the place where Lambda has it, so that tracebacks name that,
and the packages of all functions are the same bytes: sam deploy uploads them once.
"""

import compileall
import sys
from pathlib import Path
from py_compile import PycInvalidationMode

if __name__ == "__main__":
    for package in Path(sys.argv[1]).glob("*/"):
        # By hash, since a zip file changes times; unchecked, since nothing changes the source on Lambda.
        compiled = compileall.compile_dir(
            package,
            quiet=1,
            stripdir=package,
            prependdir="/var/task",
            invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
        )
        if not compiled:
            sys.exit(f"{package} could not be compiled")
