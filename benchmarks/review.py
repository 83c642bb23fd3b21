"""Milliseconds from a key press to the next image on the page of make review, with many pending images.

PYTHONPATH=functions:tests/integration .venv/bin/python -m benchmarks.review [IMAGES]

On a local stack of its own, in headless Chromium. The page measures itself: from the key's event until the second
animation frame after the next image was inserted, when it has been painted. Keys are pressed once a second, as a quick
reviewer does, and as soon as the next image has been painted; then with 100 ms more for every request, as far away as
AWS can be.
"""

import contextlib
import statistics
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from browser import Browser, Page
from local.deployment import deploy
from local.emulator import processes
from reviewing import Desk, ReviewServer
from workflow import Workflow

MEASURE = """
globalThis.times = [];
document.addEventListener("keydown", () => {
  const before = current, pressed = performance.now();
  const look = () => {
    if (current !== before && current?.painted) times.push(performance.now() - pressed);
    else setTimeout(look);
  };
  look();
}, true);
"""


def measure(page: Page, presses: int, pause: float, latency: int) -> str:
    """Press a label's key this often; the median and 95th percentile in ms."""
    conditions = {"offline": False, "latency": latency, "downloadThroughput": -1, "uploadThroughput": -1}
    page.send("Network.emulateNetworkConditions", **conditions)
    page.wait("current?.painted && ahead.length === AHEAD && ahead.every((each) => each.image)")
    page.evaluate("times.length = 0")
    for number in range(presses):
        page.press("7")
        page.wait(f"times.length === {number + 1}")
        time.sleep(pause)
    times = page.evaluate("times")
    page.wait("!unsaved.size")
    return f"p50 {statistics.median(times):.0f} ms, p95 {statistics.quantiles(times, n=20)[-1]:.0f} ms"


def main() -> None:
    images = int(sys.argv[1]) if len(sys.argv) > 1 else 1000
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        local = processes.start(folder / "stack")
        stack.callback(processes.stop, local)
        desk = Desk(Workflow(local, deploy(local)))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: desk.add(f"{number:05}.png", 0.3 + 0.4 * number / images), range(images)))
        server = ReviewServer(local, folder)
        started = time.monotonic()
        server.start()
        stack.callback(server.stop)
        print(f"{images:,} pending images: make review is ready after {time.monotonic() - started:.1f} s")
        browser = stack.enter_context(contextlib.closing(Browser()))
        page = browser.open(server.url)
        page.evaluate(f"(() => {{ {MEASURE} }})()")
        for latency in (0, 100):
            for presses, pause in ((60, 1), (200, 0)):
                print(f"{latency:3} ms more, {pause} s between keys: {measure(page, presses, pause, latency)}")
        decided = [review.revision for review in desk.table.reviewed()]
        print(f"{len(decided)} decisions, each written {sum(decided) / len(decided):.0f} time")


if __name__ == "__main__":
    main()
