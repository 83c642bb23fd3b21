"""Work on many things at once, with a bar and the time left."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from local.command import console

SECONDS = 2  # work that takes less needs no lines where the output is not a terminal
SECONDS_BETWEEN_LINES = 10
AHEAD = 4  # results for each worker that wait for the caller

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_parallel(
    title: str, function: Callable[[Item], Result], items: Iterable[Item], total: int, workers: int
) -> Iterator[Result]:
    """The results in the order of the items, which are read as they are needed: there can be millions."""
    columns = [TextColumn(title), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TimeRemainingColumn()]
    started = printed = time.monotonic()
    with Progress(*columns, console=console, transient=True) as progress, ThreadPoolExecutor(workers) as pool:
        bar = progress.add_task("", total=total)
        ahead: deque[Future[Result]] = deque()
        done = 0

        def first() -> Result:
            nonlocal done, printed
            result = ahead.popleft().result()
            done += 1
            progress.advance(bar)
            now = time.monotonic()
            if not console.is_terminal and now - started > SECONDS and now - printed > SECONDS_BETWEEN_LINES:
                printed = now
                left = (now - started) / done * (total - done)
                console.print(f"{title}: {done:,} of {total:,}, about {left:.0f} s left", markup=False)
            return result

        try:
            for item in items:
                ahead.append(pool.submit(function, item))
                if len(ahead) > AHEAD * workers:
                    yield first()
            while ahead:
                yield first()
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
