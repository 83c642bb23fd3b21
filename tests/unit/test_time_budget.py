"""train.py --minutes: the clock ends the training, and the parts depend on the time."""

import json
import math
import subprocess
import sys
import time
from argparse import Namespace

import numpy as np
import pytest

import budget
import schedule
import train
from class_folders import write_classes
from data import Dataset
from schedule import Clock, Schedule


@pytest.fixture
def clock(monkeypatch):
    """time.monotonic() is clock.now."""
    fake = Namespace(now=100.0)
    monkeypatch.setattr(schedule.time, "monotonic", lambda: fake.now)
    return fake


def test_without_a_deadline_progress_is_the_fraction_of_the_steps(clock):
    progress = Schedule(200, Clock()).progress
    clock.now += 1000
    assert [progress(step) for step in (0, 50, 200)] == [0, 0.25, 1]


def test_progress_follows_the_clock_if_there_is_too_little_time_for_the_steps(clock):
    halfway = Schedule(200, Clock(started=90, deadline=140))
    clock.now += 20
    assert halfway.progress(5) == 0.5
    assert halfway.progress(150) == 0.75
    clock.now += 20
    assert halfway.over() and halfway.progress(6) == 1


def test_after_an_interruption_progress_continues_where_it_was(clock):
    resumed = Schedule(200, Clock(started=60, deadline=140), done=100, spent=40)
    assert resumed.progress(1) == 0.5


def test_the_time_left_is_that_of_the_steps_or_of_the_clock_and_of_the_export(clock):
    running = Schedule(100, Clock(deadline=400, finish=30))
    clock.now += 20
    assert running.left(10) == 180 + 30
    assert running.left(2) == 280 + 30


PHOTOGRAPHS = Dataset(
    np.random.default_rng(0).random((200, 3, 32, 32), dtype=np.float32), np.arange(200) % 2, ["a", "b"]
)


class Slow(budget.Speed):
    """A machine on which an epoch takes 10 s and patches.py, per image, 0.1 s."""

    def image(self, *_):
        return 0.1

    def epoch(self, *_):
        return 10.0


def chosen(minutes, *given):
    """The parts and the seconds that training may take in any case."""
    options = train.parse_options(["--train", "images", "--minutes", str(minutes), *given])
    before = Namespace(**vars(options))
    train.choose_defaults(options, PHOTOGRAPHS)
    sets = {"train": PHOTOGRAPHS, "validation": PHOTOGRAPHS.subset(np.arange(20))}
    now = time.monotonic()
    least = budget.choose(
        options, before, sets, now, Slow(lambda _: 1), lambda number: train.build(number, PHOTOGRAPHS, options)
    )
    return (options.networks, options.gradients, options.patches, options.epochs), least - now


@pytest.mark.parametrize(
    "minutes, parts",
    [(1.5, (1, 1, 0)), (4, (1, 1, 400)), (30, (2, 1, 800))],
)
def test_the_shorter_the_time_the_fewer_parts(minutes, parts):
    assert chosen(minutes)[0] == (*parts, 300)


def test_given_parts_stay():
    given = ["--networks", "2", "--patches", "100", "--epochs", "7"]
    assert chosen(4, *given)[0] == (2, 1, 100, 7)


def test_a_budget_that_is_much_too_short_is_refused_with_the_minimum():
    with pytest.raises(budget.BudgetError, match=r"--minutes 0.2 is too short .* at least 1(\.\d)? are needed"):
        chosen(0.2)


def test_a_budget_that_is_somewhat_too_short_is_exceeded_with_a_warning(capsys):
    (networks, _, patches, _), least = chosen(0.7)
    assert (networks, patches) == (1, 0)
    assert least == pytest.approx(budget.MIN_EPOCHS * 10, abs=3)
    assert "Warning: --minutes 0.7 is too short" in capsys.readouterr().out


def test_training_gets_half_of_the_time_that_is_left_however_long_the_export_is_estimated(clock):
    assert budget.deadline(clock.now + 60, 10, 0) == clock.now + 50
    assert budget.deadline(clock.now + 60, 240, 0) == clock.now + 30
    assert budget.deadline(clock.now + 60, 10, clock.now + 55) == clock.now + 55
    assert budget.deadline(math.inf, 10, 0) == math.inf


def test_speeds_are_cpu_time_and_the_mean_slowdown():
    speed = budget.Speed(lambda _: 1)
    with speed.measured() as seconds:
        time.sleep(0.2)
        sum(range(5_000_000))
    assert seconds[0] == pytest.approx(speed.cpu)
    assert speed.wall > 0.2 + 0.9 * speed.cpu
    assert 1 < speed.slowdown() <= budget.MAX_SLOWDOWN


def test_two_networks_share_one_core(monkeypatch):
    options = train.parse_options(["--train", "images", "--width", "8", "--networks", "2"])
    train.choose_defaults(options, PHOTOGRAPHS)
    monkeypatch.setattr(budget.Speed, "slowdown", lambda _: 1.0)
    one, two = (
        min(
            budget.Speed(lambda _: cores).epoch(train.build(1, PHOTOGRAPHS, options), PHOTOGRAPHS, options)  # noqa: B023
            for _ in range(3)
        )
        for cores in (1, 0.5)
    )
    assert two == pytest.approx(2 * one, rel=0.5)


def test_a_budget_of_no_time_is_rejected(capsys):
    with pytest.raises(SystemExit):
        train.parse_options(["--train", "images", "--minutes", "0"])
    assert "--minutes must be more than 0" in capsys.readouterr().err


def test_training_ends_when_its_time_is_up(tmp_path):
    write_classes(tmp_path / "images", {"cat": 60, "dog": 60})
    command = [sys.executable, train.__file__, "--train", tmp_path / "images", "--minutes", "1", "--epochs", "100000"]
    command += ["--model-dir", tmp_path / "model", "--output-data-dir", tmp_path / "output", "--width", "8"]
    job = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (job.returncode, job.stderr) == (0, "")
    metadata = json.loads((tmp_path / "model/metadata.json").read_text())
    assert metadata["hyperparameters"]["minutes"] == 1
    assert 1 <= metadata["epochs"] < 100_000
    assert math.isfinite(metadata["figures"]["validation"]["loss"])
