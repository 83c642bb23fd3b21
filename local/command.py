"""Shared by the make commands: folders, the console, the lock on .local, and error reporting."""

import contextlib
import fcntl
import io
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from botocore.exceptions import ConnectionError, HTTPClientError
from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
LOCAL = ROOT / ".local"
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


class StackError(Exception):
    """The command cannot go on; the message says why and what to do."""


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Print the title of a step while it runs, and its duration at the end."""
    started = time.monotonic()
    with console.status(f"{title} ..."):
        yield
    console.print(f"{title} [dim]({time.monotonic() - started:.1f} s)[/dim]")


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """Allow only one command at a time to use .local; a second one raises StackError."""
    LOCAL.mkdir(exist_ok=True)
    with (LOCAL / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackError("Another make command is using the local stack: wait until it has finished.") from None
        yield


def exit_on_sigterm() -> None:
    """Run the clean-up on SIGTERM too, as Python does on Ctrl-C."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


@contextlib.contextmanager
def report_errors() -> Iterator[None]:
    """Print a StackError as one sentence, without a traceback, and exit with status 1."""
    exit_on_sigterm()
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
    except KeyboardInterrupt:
        console.print("\nInterrupted.")
        sys.exit(130)
