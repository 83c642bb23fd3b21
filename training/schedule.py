"""How long training takes: by a number of steps or by the clock, and what remains."""

import math
import time
from dataclasses import dataclass


@dataclass(frozen=True)
class Clock:
    """Points in time on time.monotonic(), which the processes of one machine share."""

    started: float = 0.0  # of the command
    deadline: float = math.inf  # of the networks' training
    finish: float = 0.0  # estimated seconds from the end of the networks' training to the end of the command


class Schedule:
    """The progress of one network's training, from 0 to 1: by its steps or by the clock, whichever is further.

    A deadline therefore holds, however fast the machine is and whatever else runs on it. done and spent: the steps
    and the seconds of training before an interruption.
    """

    def __init__(self, steps: int, clock: Clock, done: int = 0, spent: float = 0.0) -> None:
        self.steps, self.clock, self.done = steps, clock, done
        self.resumed = time.monotonic()
        self.began = self.resumed - spent

    def progress(self, step: int) -> float:
        if self.over():
            return 1.0
        return max(step / self.steps, self.spent() / (self.clock.deadline - self.began))

    def over(self) -> bool:
        """Whether the time is up."""
        return time.monotonic() >= self.clock.deadline

    def spent(self) -> float:
        """Seconds of training so far."""
        return time.monotonic() - self.began

    def left(self, step: int) -> float:
        """Estimated seconds to the end of the command."""
        now = time.monotonic()
        by_steps = (now - self.resumed) / max(step - self.done, 1) * (self.steps - step)
        return max(min(by_steps, self.clock.deadline - now), 0.0) + self.clock.finish


def duration(seconds: float) -> str:
    """40s, 12m or 3h."""
    if seconds < 100:
        return f"{seconds:.0f}s"
    return f"{seconds / 60:.0f}m" if seconds < 6000 else f"{seconds / 3600:.0f}h"
