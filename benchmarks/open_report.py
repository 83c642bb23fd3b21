"""make bench: the time to render the report of 1,000 executions, and to open it in headless Chromium.

Opening is the time of a whole browser process with the page, minus that with an empty page; both are medians.
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
    """Seconds until a new browser has loaded the page, run its script and exited."""
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
        sys.exit("Chromium is not installed: apt-get install chromium")
    with tempfile.TemporaryDirectory() as folder:
        page, empty = Path(folder) / "report.html", Path(folder) / "empty.html"
        page.write_text(html, encoding="utf-8")
        empty.write_text("<!DOCTYPE html><title>empty</title>", encoding="utf-8")
        pairs = [(open_page(browser, page), open_page(browser, empty)) for _ in range(TIMES)]
    opened, without = (statistics.median(times) for times in zip(*pairs, strict=True))
    print(f"opened in {opened - without:.2f} s: {opened:.2f} s including the browser's startup, {without:.2f} s")


if __name__ == "__main__":
    main()
