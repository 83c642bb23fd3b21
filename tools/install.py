"""Install what the project's commands need: python3 tools/install.py COMMAND, one of COMMANDS.

Runs on Python 3.11 or later with only the standard library, and creates

  .venv                        training, endpoint, tests: on the current Python, if PyTorch supports it; atheris there
                               only for `fuzz`
  .local/venvs/emulator        the emulated AWS
  .local/venvs/sam             the SAM CLI
  .local/venvs/lambda          Python 3.13, found or downloaded with uv, with AWS's Lambda runtime client
  .local/venvs/sagemaker       SageMaker's SDK, to start training jobs: about 1 GB, only for `launch`
  .local/venvs/label-studio    Label Studio's SDK, only for `label-studio`
  .local/venvs/sklearn-serving Python 3.12, with the server of SageMaker's scikit-learn image, only for `containers`
  .local/venvs/checkov         only for `lint`
  .local/venvs/bench-serving   the servers for `make bench-endpoint` to compare, only for `bench`
  .local/venvs/audit           pip-audit, and CycloneDX for the functions' bill of materials
  .local/venvs/uv              for `make lock`, and to download a missing Python
  .local/bin                   `sam`, and the `python3.13` that `sam build` looks for on PATH

each from its file of exact, hashed pins in requirements/. Environments that are up to date are left unchanged.
"""

import concurrent.futures
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

COMMANDS = (
    "run", "test", "lint", "notebook", "launch", "label-studio", "sam", "containers", "bench", "audit", "fuzz", "uv",
)  # fmt: skip
ROOT = Path(__file__).resolve().parent.parent
LOCAL = ROOT / ".local"
OLDEST, NEWEST = (3, 11), (3, 14)  # the pinned PyTorch and ONNX Runtime have wheels for these
LAMBDA_PYTHON = "3.13"  # the functions' runtime in template.yaml
SKLEARN_PYTHON = "3.12"  # the scikit-learn image's, for which endpoint/package.py packs
# Variables of the user's that would change Python, or where pip installs to; indexes, proxies and caches stay.
FOREIGN = ("PYTHON", "VIRTUAL_ENV", "PIP_USER", "PIP_TARGET", "PIP_PREFIX", "PIP_ROOT", "PIP_PYTHON", "PIP_REQUIRE")
PYTORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
TORCH = ROOT / "requirements/torch.txt"


class SetupError(Exception):
    """The installation cannot go on; the message says what to do."""


def run(arguments: list[str | Path], log: Path) -> None:
    """Run a command with its output in a log file; SetupError with the end of the log if it fails."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith(FOREIGN)}
    environment["PIP_USER"] = "0"  # overrides pip's configuration files
    with log.open("ab") as output:
        output.write(f"\n$ {' '.join(map(str, arguments))}\n".encode())
        output.flush()
        code = subprocess.run(
            arguments, stdout=output, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, env=environment, cwd=ROOT
        ).returncode
    if code:
        end = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
        where = log.relative_to(ROOT)
        raise SetupError(f"{end}\n\nThe command failed. Check the network and the free disk space. Full log: {where}")


def install(name: str, python: str, venv: Path, requirements: str, torch: bool = False, sources: bool = False) -> bool:
    """Create the virtual environment and install the pinned packages; return False if it is up to date.

    sources: some packages are published only as sources; they are built with the pins of requirements/build.txt.
    """
    lock = ROOT / "requirements" / requirements
    stamp = venv / f".installed-{requirements}"
    wanted = hashlib.sha256(lock.read_bytes() + python.encode() + torch_requirement().encode()).hexdigest()
    if stamp.exists() and stamp.read_text() == wanted and (venv / "bin" / "python").exists():
        return False
    print(f"installing {requirements} in {venv.relative_to(ROOT)}; log: .local/logs/install-{name}.log", flush=True)
    log = LOCAL / "logs" / f"install-{name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    if not (venv / "bin" / "python").exists() or not any(venv.glob(".installed-*")):
        shutil.rmtree(venv, ignore_errors=True)  # incomplete, from an interrupted installation
        run([python, "-m", "venv", venv], log)
    pip: list[str | Path] = [venv / "bin/python", "-m", "pip", "install", "--disable-pip-version-check", "--no-input"]
    pinned = [*pip, "--require-hashes", "--no-deps"]
    if sources:
        run([*pinned, "--only-binary=:all:", "-r", ROOT / "requirements/build.txt"], log)
    run([*pinned, "--no-build-isolation" if sources else "--only-binary=:all:", "-r", lock], log)
    if torch:
        index = ["--extra-index-url", PYTORCH_CPU_INDEX, "--retries", "2"]
        run([*pinned, "--only-binary=:all:", *index, "-r", TORCH], log)
    if not any(any(venv.glob(f"lib/python*/site-packages/{name}-*.dist-info")) for name in names_in(lock)):
        raise SetupError(
            f"pip reported success, but {venv.relative_to(ROOT)} is empty: check pip's configuration files."
        )
    stamp.write_text(wanted)
    return True


def names_in(lock: Path) -> list[str]:
    """The names of the pinned packages, as their installed folders have them."""
    pins = [line.partition("==") for line in lock.read_text().splitlines()]
    return [re.sub(r"[-_.]+", "_", name) for name, pinned, _ in pins if pinned and not name.startswith((" ", "#"))]


def torch_requirement() -> str:
    """torch==x.y.z+cpu"""
    return next(line for line in TORCH.read_text().splitlines() if line.startswith("torch==")).removesuffix(" \\")


def write_commands() -> None:
    """.local/bin. A script rather than a link to python3.13, which would not find its environment's packages."""
    python = f"python{LAMBDA_PYTHON}"
    for name, target in (("sam", 'sam/bin/python" -m samcli'), (python, f'lambda/bin/{python}"')):
        command = LOCAL / "bin" / name
        command.parent.mkdir(exist_ok=True)
        command.unlink(missing_ok=True)
        command.write_text(f'#!/bin/sh\nexec "$(dirname "$0")/../venvs/{target} "$@"\n')
        command.chmod(0o755)


def works(python: str | Path, minor: str) -> bool:
    """Whether this is a Python of that minor version that can create virtual environments."""
    code = "import ensurepip, sys, venv; print('%d.%d' % sys.version_info[:2])"
    try:
        found = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=20, cwd="/")
    except (OSError, subprocess.TimeoutExpired):
        return False
    return found.stdout.strip() == minor


def find_python(minor: str) -> str | None:
    """A Python of that minor version: the current one, on PATH, or installed by pyenv or uv; else None."""
    roots = [
        Path(sys.base_prefix).parent,
        Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions",
        Path(os.environ.get("UV_PYTHON_INSTALL_DIR") or Path.home() / ".local/share/uv/python"),
        LOCAL / "python",
    ]
    candidates = [sys.executable, *filter(None, [shutil.which(f"python{minor}")])]
    candidates += [str(path) for root in roots for path in sorted(root.glob(f"*{minor}*/bin/python{minor}"))]
    return next((candidate for candidate in candidates if works(candidate, minor)), None)


def download_python(minor: str, purpose: str) -> str:
    """Download a Python with uv to .local/python. `purpose` begins the error message: "The functions run"."""
    uv: str | Path | None = shutil.which("uv")
    try:
        if not uv:
            install("uv", sys.executable, LOCAL / "venvs/uv", "uv.txt")
            uv = LOCAL / "venvs/uv/bin/uv"
        print(f"Python {minor} was not found: downloading it with uv", flush=True)
        log = LOCAL / "logs/install-python.log"
        run([uv, "python", "install", minor, "--install-dir", LOCAL / "python", "--no-bin"], log)
    except SetupError as error:
        raise SetupError(
            f"{error}\n\n{purpose} on Python {minor}, which was not found and cannot be downloaded: install it "
            f"(apt-get install python{minor}-venv, pyenv install {minor}, or uv python install {minor}) and try again."
        ) from None
    return find_python(minor) or ""


def check_machine() -> None:
    if sys.platform != "linux":
        raise SetupError("The local stack needs Linux or WSL2: AWS's Lambda runtime client has no other builds.")
    if sys.version_info[:2] < OLDEST:
        version = platform.python_version()
        raise SetupError(f"Python 3.11 or later is required; this is {version}. Try: make PYTHON=python3.12 ...")
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise SetupError("Python's venv is missing. On Debian and Ubuntu: apt-get install python3-venv") from None


def install_all(environments: list[tuple[Any, ...]]) -> None:
    """Install in parallel, and print what has been installed and, every few seconds, what has not yet."""
    started, running, lock = time.monotonic(), set(), threading.Lock()

    def install_one(name: str, *arguments: Any) -> None:
        with lock:
            running.add(name)
        if install(name, *arguments):
            print(f"installed {name} ({time.monotonic() - started:.0f} s)", flush=True)
        with lock:
            running.discard(name)

    with concurrent.futures.ThreadPoolExecutor(len(environments)) as pool:
        futures = [pool.submit(install_one, *environment) for environment in environments]
        waiting = 3
        while pending := concurrent.futures.wait(futures, waiting, concurrent.futures.FIRST_EXCEPTION).not_done:
            if any(future.done() and future.exception() for future in futures):
                for future in pending:
                    future.cancel()
                break
            waiting = 15
            print(f"installing {', '.join(sorted(running))} ({time.monotonic() - started:.0f} s)", flush=True)
    for future in futures:
        future.result()


def main(command: str) -> None:
    check_machine()
    if command == "uv":
        return install_all([("uv", sys.executable, LOCAL / "venvs/uv", "uv.txt")])
    if command == "audit":
        return install_all([("audit", sys.executable, LOCAL / "venvs/audit", "audit.txt")])
    if command == "lint":
        return install_all([("checkov", sys.executable, LOCAL / "venvs/checkov", "checkov.txt")])
    if command == "launch":
        return install_all([("sagemaker", sys.executable, LOCAL / "venvs/sagemaker", "sagemaker.txt")])
    if command == "label-studio":
        return install_all([(command, sys.executable, LOCAL / "venvs/label-studio", "label-studio.txt")])
    if command == "containers":
        python = find_python(SKLEARN_PYTHON) or download_python(SKLEARN_PYTHON, "SageMaker's scikit-learn image runs")
        venv = LOCAL / "venvs/sklearn-serving"
        return install_all([("sklearn-serving", python, venv, "sklearn-serving.txt", False, True)])
    if command == "bench":
        venv = LOCAL / "venvs/bench-serving"
        return install_all([("bench-serving", sys.executable, venv, "bench-serving.txt", True, True)])
    lambda_python = find_python(LAMBDA_PYTHON) or download_python(LAMBDA_PYTHON, "The functions run")
    python = sys.executable if sys.version_info[:2] <= NEWEST else lambda_python
    if command == "fuzz":
        return install_all([("fuzz", python, ROOT / ".venv", "fuzz.txt")])
    environments: list[tuple[Any, ...]] = [
        ("sam", python, LOCAL / "venvs/sam", "sam.txt"),
        ("lambda", lambda_python, LOCAL / "venvs/lambda", "lambda.txt"),  # sam build uses it
    ]
    if command in ("run", "test", "notebook"):
        environments += [
            ("project", python, ROOT / ".venv", f"{command}.txt", True),
            ("emulator", python, LOCAL / "venvs/emulator", "emulator.txt"),
        ]
    install_all(environments)
    write_commands()


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] not in COMMANDS:
        sys.exit(__doc__)
    try:
        main(sys.argv[1])
    except SetupError as error:
        sys.exit(f"\n{error}")
    except KeyboardInterrupt:
        sys.exit("\nInterrupted: run the command again to continue.")
    except PermissionError as error:
        sys.exit(f"{error.filename} cannot be written: {error.strerror}")
