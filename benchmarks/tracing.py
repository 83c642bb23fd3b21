"""The cost of the Tracer in a cold start, by variant: .venv/bin/python benchmarks/tracing.py

The variants are copies of the built package that differ in the line that creates the tracer. They are imported
alternately, each in a new process. Requires the build of make run or make test. Prints medians in milliseconds.
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
BUILT = ROOT / ".local/sam/build/CheckConfidenceFunction"  # of all functions: tools/share.py
PYTHON = ROOT / ".local/venvs/lambda/bin/python"
PROCESSES = 11
TRACER = re.compile(r"tracer = Tracer\(.*\)")
VARIANTS = {
    "current": None,
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


def variant(module: str, tracer: str | None, folder: Path) -> Path:
    """Copy the package, replace the tracer in this module and compile it as for deployment."""
    shutil.copytree(BUILT, folder)
    path = folder / f"{module}.py"
    text, found = TRACER.subn(tracer or r"\g<0>", path.read_text())
    assert found == 1, f"{module} has {found} matches of {TRACER.pattern}"
    path.write_text(text)
    subprocess.run([PYTHON, ROOT / "tools/compile.py", folder.parent], check=True)
    return folder


def milliseconds(folder: Path, module: str, **variables: str) -> float:
    """The import's duration."""
    command = [PYTHON, "-c", TIMED, module]
    environment = ENVIRONMENT | variables | {"PYTHONPATH": str(folder)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return 1000 * json.loads(result.stdout.splitlines()[-1])


def main() -> None:
    if not BUILT.exists():
        sys.exit("There is no build: run make run first.")
    for module in ("retrieve_image", "classify_image", "check_confidence", "record_outcome"):
        with tempfile.TemporaryDirectory() as work:
            folders = {
                name: variant(module, tracer, Path(work, name.replace(" ", "-"), "package"))
                for name, tracer in VARIANTS.items()
            }
            durations: dict[str, list[float]] = {name: [] for name in [*folders, "tracing off"]}
            for _ in range(PROCESSES):
                for name, folder in folders.items():
                    durations[name].append(milliseconds(folder, module))
                off = milliseconds(folders["current"], module, POWERTOOLS_TRACE_DISABLED="true")
                durations["tracing off"].append(off)
            print(f"{module}:", ", ".join(f"{name} {statistics.median(each):.0f}" for name, each in durations.items()))


if __name__ == "__main__":
    main()
