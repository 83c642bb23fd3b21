"""Shared by the make commands: folders, the console, the lock on .local, and error reporting."""

import contextlib
import ctypes
import errno
import fcntl
import io
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from botocore.exceptions import ConnectionError, HTTPClientError
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
LOCAL = ROOT / ".local"
EXAMPLES = 5  # of a list that can be long
LAST_LINES = 20  # of the output of a script that failed
INTERRUPTED = 130  # exit status after Ctrl-C, as in a shell
SECONDS_TO_END = 30  # for a script that was interrupted; a second Ctrl-C kills it at once
PRCTL, PR_SET_PDEATHSIG = getattr(ctypes.CDLL(None), "prctl", None), 1  # only Linux has it
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


class StackError(Exception):
    """The command cannot go on; the message says why and what to do."""


class UsageError(StackError):
    """A value that the user gave is not usable; the message says which and what to give instead."""


def check_reviewer(name: str) -> None:
    """Raise UsageError for a name that decisions cannot bear. No name at all is not checked."""
    if len(name) > 256 or re.search(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]", name):  # surrogates: not UTF-8
        raise UsageError("REVIEWER is not a name of at most 256 characters, none of them a control character")


def one_of(name: str, value: str, values: tuple[str, ...]) -> None:
    """Raise UsageError if the variable has another value, or none."""
    if not value:
        raise UsageError(f"{name} is missing: give {name}={', '.join(values[:-1])} or {values[-1]}")
    if value not in values:
        raise UsageError(f"{name}={value} is not one of {', '.join(values)}")


def absolute(name: str, value: str) -> str:
    """The path that the variable names, whatever folder make was started in. Raises UsageError if it is not given."""
    if not value:
        raise UsageError(f"{name} is missing: give {name}=path")
    return str(Path(value).resolve())


def examples(texts: Sequence[str]) -> str:
    """The first few, and how many more there are."""
    more = len(texts) - EXAMPLES
    return ", ".join(texts[:EXAMPLES]) + (f" and {more:,} more" if more > 0 else "")


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Print the title of a step while it runs, and its duration at the end."""
    started = time.monotonic()
    with console.status(f"{title} ..."):
        yield
    console.print(f"{title} [dim]({time.monotonic() - started:.1f} s)[/dim]")


@contextlib.contextmanager
def lock(shared: bool = False) -> Iterator[None]:
    """Allow only one command at a time to change .local, or several that share it; otherwise raise StackError."""
    LOCAL.mkdir(exist_ok=True)
    with (LOCAL / "lock").open("w") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            end = "" if shared else ", or, if it is make review, end it with Ctrl-C"
            problem = f"Another make command is using the local stack: wait until it has finished{end}."
            raise StackError(problem) from None
        yield


def run(
    command: Sequence[str], variables: Mapping[str, str], allowed: Sequence[int] = (0,), capture: bool = False
) -> str:
    """Run a script in the project's folder; its output is shown, or returned with `capture`. Raises StackError.

    It has a process group of its own, so that Ctrl-C reaches it and its processes once, however this command ends.
    """
    sys.stdout.flush()
    output = subprocess.PIPE if capture else None
    process = subprocess.Popen(
        command, cwd=ROOT, env=variables, stdout=output, text=True, process_group=0, preexec_fn=end_with_parent
    )
    try:
        printed, _ = process.communicate()
    except BaseException as error:
        try:
            if isinstance(error, KeyboardInterrupt):
                with contextlib.suppress(OSError):  # what reads the output may have ended too
                    console.print("\nEnding; Ctrl-C again kills it")
            with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
                os.killpg(process.pid, signal.SIGINT)
                process.wait(SECONDS_TO_END)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        if isinstance(error, KeyboardInterrupt) and process.returncode > 0:  # it has said so
            sys.exit(INTERRUPTED)
        raise
    if process.returncode not in allowed:
        if printed:
            print(*printed.splitlines()[-LAST_LINES:], sep="\n")
        name = next(part for part in command[1:] if part != "-m")
        raise StackError(f"{name} failed with status {process.returncode}: its message is above")
    return printed or ""


def end_with_parent() -> None:
    """In the process of a script: let SIGINT end it, even if a shell's & ignores that, and the end of the command."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    if PRCTL:
        PRCTL(PR_SET_PDEATHSIG, signal.SIGINT)


def exit_on_signals() -> None:
    """Run the clean-up on SIGTERM and when the terminal is closed too, as Python does on Ctrl-C.

    Signals that are ignored stay so, as with nohup. A second signal does not interrupt the clean-up.
    """
    numbers = [each for each in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(each) is not signal.SIG_IGN]

    def end(number: int, _: object) -> None:
        for each in numbers:
            signal.signal(each, signal.SIG_IGN)
        sys.exit(128 + number)

    for each in numbers:
        signal.signal(each, end)


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
    """Print errors that the user can fix as one sentence, without a traceback, and exit with status 1."""
    exit_on_signals()
    if isinstance(sys.stdout, io.TextIOWrapper):  # not every terminal and file name is UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
    except StackError as error:
        console.print(f"[bold red]{type(error).__name__}[/]", end=": ")
        console.print(str(error), markup=False)
        sys.exit(1)
    except (HTTPClientError, ConnectionError) as error:
        console.print(f"The local stack no longer responds: {error} Run the command again.", markup=False)
        sys.exit(1)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC) or not error.filename:
            raise
        console.print(f"{error.filename} cannot be written: {error.strerror}", markup=False, soft_wrap=True)
        sys.exit(1)
    except KeyboardInterrupt as error:
        console.print(f"\nInterrupted. {error}".rstrip(), markup=False, soft_wrap=True)
        sys.exit(INTERRUPTED)
