"""make bench: how long the page of 1,000 executions takes to render, and to open in headless Chromium.

Opening is the time of a whole browser process with the page less that with an empty one, each the median of several.
"""

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from local.report.render import render
from recorded import record
from test_report_in_a_browser import BROWSERS, HEADLESS

EXECUTIONS, TIMES = 1000, 7


def open_page(browser: str, page: Path) -> float:
    """Seconds until a new browser has loaded the page, run its script, and ended."""
    with tempfile.TemporaryDirectory() as profile:
        options = [*HEADLESS, f"--user-data-dir={profile}"]
        started = time.monotonic()
        subprocess.run([browser, *options, "--dump-dom", page.as_uri()], capture_output=True, check=True, timeout=60)
        return time.monotonic() - started


def main() -> None:
    started = time.monotonic()
    html = render(record(EXECUTIONS))
    print(f"{EXECUTIONS:,} executions: rendered in {time.monotonic() - started:.2f} s, {len(html) / 1e6:.1f} MB")
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not browser:
        sys.exit("There is no Chromium to open it in: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        page, empty = Path(folder) / "report.html", Path(folder) / "empty.html"
        page.write_text(html, encoding="utf-8")
        empty.write_text("<!DOCTYPE html><title>empty</title>", encoding="utf-8")
        pairs = [(open_page(browser, page), open_page(browser, empty)) for _ in range(TIMES)]
    opened, without = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"opened in {opened - without:.2f} s: {opened:.2f} s with the browser's start, which takes {without:.2f} s")


if __name__ == "__main__":
    main()
