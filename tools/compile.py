"""Compile the functions that sam build packaged: python3.13 tools/compile.py .aws-sam/build

Lambda's /var/task is read-only: otherwise, every cold start would compile every module again, and the schemas of
contract.py. The Python that runs this must be the functions' runtime. The compiled files contain their paths on Lambda,
so that tracebacks show those.
"""

import compileall
import json
import re
import runpy
import site
import sys
from pathlib import Path
from py_compile import PycInvalidationMode


def compile_schemas(package: Path) -> None:
    """Write compiled_schemas.py: the validating function of each schema of contract.py, and the exception they raise.

    fastjsonschema generates the functions. Its exceptions are copied, so that no cold start imports all of it.
    """
    if not (package / "contract.py").exists():
        return
    site.addsitedir(str(package))  # fastjsonschema is in the package, not in the runtime
    import fastjsonschema

    code = [Path(fastjsonschema.exceptions.__file__).read_text(), "VALIDATORS = {}\n"]
    for name, schema in runpy.run_path(str(package / "contract.py")).items():
        if re.fullmatch("[A-Z][A-Z_]*", name):
            function = fastjsonschema.compile_to_code(schema, use_default=False)
            code.append(re.sub(r"^from fastjsonschema import .*\n", "", function, flags=re.MULTILINE))
            code.append(f"VALIDATORS[{json.dumps(schema)!r}] = validate\n")
    (package / "compiled_schemas.py").write_text("\n".join(code))


def compile_modules(package: Path) -> None:
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


if __name__ == "__main__":
    for package in Path(sys.argv[1]).glob("*/"):
        compile_schemas(package)
        compile_modules(package)
