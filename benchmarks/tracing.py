"""What the Tracer costs a cold start, in its variants: .venv/bin/python benchmarks/tracing.py

Copies of the built package differ in the line that makes the tracer; each is imported in a process of its own, in turn.
Needs make up's build (make run, or make test, makes it). Prints medians of milliseconds.
"""

import json
import re
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BUILT = ROOT / ".local/sam/build/RetrieveImageFunction"
PYTHON = ROOT / ".local/venvs/lambda/bin/python"
PROCESSES = 11
AS_IT_IS = re.compile(r"tracer = Tracer\(.*\)")
VARIANTS = {
    "as it is": None,
    "patch all": "tracer = Tracer()",
    "patch botocore": 'tracer = Tracer(patch_modules=("botocore",))',
    "patch nothing": "tracer = Tracer(auto_patch=False)",
}
TIMED = "import sys, time; started = time.perf_counter(); __import__(sys.argv[1]); print(time.perf_counter() - started)"
ENVIRONMENT = {
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_ACCESS_KEY_ID": "none",
    "AWS_SECRET_ACCESS_KEY": "none",
    "AWS_XRAY_CONTEXT_MISSING": "IGNORE_ERROR",
    "LAMBDA_TASK_ROOT": "/var/task",
    "POWERTOOLS_SERVICE_NAME": "benchmark",
    "POWERTOOLS_METRICS_NAMESPACE": "Benchmark",
}


def variant(module, tracer, folder):
    """The package with another tracer in this module, compiled as it is deployed."""
    shutil.copytree(BUILT, folder)
    path = folder / f"{module}.py"
    text, found = AS_IT_IS.subn(tracer or r"\g<0>", path.read_text())
    assert found == 1, f"{module} makes its tracer in another way"
    path.write_text(text)
    subprocess.run([PYTHON, ROOT / "tools/compile.py", folder.parent], check=True)
    return folder


def milliseconds(folder, module, **more):
    command = [PYTHON, "-c", TIMED, module]
    environment = ENVIRONMENT | more | {"PYTHONPATH": str(folder)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return 1000 * json.loads(result.stdout.splitlines()[-1])


def main():
    if not BUILT.exists():
        sys.exit("There is no build: make run makes it.")
    for module in ("retrieve_image", "classify_image", "check_confidence", "record_outcome"):
        with tempfile.TemporaryDirectory() as work:
            folders = {
                name: variant(module, tracer, Path(work, name.replace(" ", "-"), "package"))
                for name, tracer in VARIANTS.items()
            }
            taken = {name: [] for name in [*folders, "tracing off"]}
            for _ in range(PROCESSES):
                for name, folder in folders.items():
                    taken[name].append(milliseconds(folder, module))
                taken["tracing off"].append(milliseconds(folders["as it is"], module, POWERTOOLS_TRACE_DISABLED="true"))
            print(module + ": " + ", ".join(f"{name} {statistics.median(each):.0f}" for name, each in taken.items()))


if __name__ == "__main__":
    main()
