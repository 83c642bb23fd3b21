"""What make run prints."""

from local import run
from local.executions import Outcome


def test_labels_and_keys_with_brackets_are_printed_as_they_are(monkeypatch):
    rows = [Outcome(f"up/{side}/[a].png", "SUCCEEDED", f"shoe [{side}]", 0.9, 1.0, None, None) for side in ("l", "r")]
    with run.console.capture() as printed:
        run.show(rows)
    for text in ("shoe [l]", "shoe [r]", "l/[a].png"):
        assert text in printed.get()
