"""Work on many things at once, in order and without reading them all first."""

import threading
import time

import pytest

from local import progress
from local.progress import AHEAD, in_parallel


def test_results_are_in_the_order_of_the_items(capsys):
    def slow(number):
        time.sleep(0.01 * (number % 3))
        return -number

    assert list(in_parallel("Working", slow, range(50), 50, 8)) == [-number for number in range(50)]
    assert "left" not in capsys.readouterr().out


def test_items_are_read_only_as_far_ahead_as_needed():
    read = []
    items = (read.append(number) or number for number in range(1000))
    results = in_parallel("Working", abs, items, 1000, 2)
    assert next(results) == 0
    assert len(read) <= 2 * AHEAD + 1
    results.close()


def test_an_error_ends_the_work_that_has_not_begun():
    begun, go = [], threading.Event()

    def work(number):
        begun.append(number)
        if number == 0:
            raise ValueError(number)
        go.wait(5)

    with pytest.raises(ValueError):
        try:
            list(in_parallel("Working", work, range(100), 100, 1))
        finally:
            go.set()
    assert len(begun) <= 2


def test_without_a_terminal_lines_say_how_much_is_left(monkeypatch, capsys):
    monkeypatch.setattr(progress, "SECONDS", 0)
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)
    list(in_parallel("Working", abs, range(4), 4, 1))
    assert "Working: 2 of 4, about 0 s left" in capsys.readouterr().out
