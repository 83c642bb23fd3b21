"""Compile the functions that sam build packaged: python3.13 tools/compile.py .aws-sam/build

Lambda's /var/task is read-only: otherwise, every cold start would compile every module again. The Python that runs this
must be the functions' runtime. The compiled files contain their paths on Lambda, so that tracebacks show those and the
packages of all functions are identical: sam deploy uploads them once.
"""

import compileall
import sys
from pathlib import Path
from py_compile import PycInvalidationMode

if __name__ == "__main__":
    for package in Path(sys.argv[1]).glob("*/"):
        # By hash, because zip files change timestamps; unchecked, because the source never changes on Lambda.
        compiled = compileall.compile_dir(
            package,
            quiet=1,
            stripdir=package,
            prependdir="/var/task",
            invalidation_mode=PycInvalidationMode.UNCHECKED_HASH,
        )
        if not compiled:
            sys.exit(f"{package} could not be compiled")
