"""What the make commands share: the folders they work in, their words on the terminal, and how they end."""

import contextlib
import fcntl
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console

ROOT = Path(__file__).resolve().parent.parent
LOCAL = ROOT / ".local"
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


class StackError(Exception):
    """The local stack can't do what was asked; the message says why and what to do."""


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Say what is under way, and how long it took."""
    started = time.monotonic()
    with console.status(f"{title} ..."):
        yield
    console.print(f"{title} [dim]({time.monotonic() - started:.1f} s)[/dim]")


@contextlib.contextmanager
def lock() -> Iterator[None]:
    """One command at a time works in .local."""
    LOCAL.mkdir(exist_ok=True)
    with (LOCAL / "lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StackError("Another make command is using the local stack: wait for it to end.") from None
        yield


def interruptible() -> None:
    """Let SIGTERM, as Ctrl-C does, run the clean-up."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))


@contextlib.contextmanager
def told() -> Iterator[None]:
    """Print what goes wrong as a sentence, and leave with 1."""
    interruptible()
    try:
        yield
    except StackError as error:
        console.print(f"[bold red]{type(error).__name__}[/]", end=": ")
        console.print(str(error), markup=False)
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("\nInterrupted.")
        sys.exit(130)
