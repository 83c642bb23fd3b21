"""Headless Chromium, driven over its DevTools protocol: https://chromedevtools.github.io/devtools-protocol/

The browser reads commands from file descriptor 3 and writes answers to 4, so it needs no WebSocket client.
"""

import base64
import itertools
import json
import os
import queue
import shutil
import subprocess
import tempfile
import threading
import time

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
OPTIONS = [
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--hide-scrollbars"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--remote-debugging-pipe"),
]
NAMED_KEYS = {"ArrowLeft": 37, "ArrowRight": 39, "Enter": 13, "Escape": 27, "Backspace": 8, "Tab": 9}
SECONDS = 30


class DevToolsError(Exception):
    """Chromium rejected a command, or the page's script threw."""


class Browser:
    def __init__(self):
        self.path = next(filter(None, map(shutil.which, BROWSERS)), None)
        self.profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        from_us, self.write_end = os.pipe()
        self.read_end, to_us = os.pipe()
        command = ["bash", "-c", f'exec "$0" "$@" 3<&{from_us} 4>&{to_us}', self.path, *OPTIONS]
        self.process = subprocess.Popen(
            [*command, f"--user-data-dir={self.profile.name}", "about:blank"],
            pass_fds=(from_us, to_us), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(from_us)
        os.close(to_us)
        self.numbers = itertools.count(1)
        self.answers: dict[int, queue.SimpleQueue] = {}
        self.pages: dict[str, Page] = {}
        threading.Thread(target=self.read, daemon=True).start()

    def read(self):
        rest = b""
        while chunk := os.read(self.read_end, 1 << 20):
            *messages, rest = (rest + chunk).split(b"\0")
            for message in map(json.loads, messages):
                if "id" in message:
                    self.answers.pop(message["id"]).put(message)
                elif message.get("sessionId") in self.pages:
                    self.pages[message["sessionId"]].events.append(message)

    def send(self, method, session=None, **params):
        number = next(self.numbers)
        answer = self.answers[number] = queue.SimpleQueue()
        message = {"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {})
        os.write(self.write_end, json.dumps(message).encode() + b"\0")
        response = answer.get(timeout=SECONDS)
        if "error" in response:
            raise DevToolsError(f"{method}: {response['error']['message']}")
        return response["result"]

    def open(self, url="about:blank", **window):
        target = self.send("Target.createTarget", url="about:blank", newWindow=True)["targetId"]
        session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = self.pages[session] = Page(self, session, target)
        for domain in ("Page", "Runtime", "Network", "Log"):
            page.send(f"{domain}.enable")
        page.resize(**window)
        if url != "about:blank":
            page.goto(url)
        return page

    def close(self):
        os.close(self.write_end)
        self.process.wait(SECONDS)
        self.profile.cleanup()


class Page:
    """A tab in a window of its own."""

    def __init__(self, browser, session, target):
        self.browser, self.session, self.target = browser, session, target
        self.events: list[dict] = []

    def send(self, method, **params):
        return self.browser.send(method, self.session, **params)

    def goto(self, url):
        self.send("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def evaluate(self, script):
        """The value of a JavaScript expression, awaited if it is a promise."""
        result = self.send("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in result:
            raise DevToolsError(json.dumps(result["exceptionDetails"])[:2000])
        return result["result"].get("value")

    def wait(self, script, seconds=SECONDS):
        """Wait until a JavaScript expression is true, and return its value."""
        deadline = time.monotonic() + seconds
        while not (value := self.evaluate(script)):
            if time.monotonic() > deadline:
                raise AssertionError(f"{script} did not become true; the page says:\n{self.text()}")
            time.sleep(0.02)
        return value

    def text(self):
        return self.evaluate("document.body.innerText")

    def press(self, *keys):
        for key in keys:
            code = NAMED_KEYS.get(key)
            own = {"windowsVirtualKeyCode": code} if code else {"text": key}
            self.send("Input.dispatchKeyEvent", type="keyDown", key=key, **own)
            self.send("Input.dispatchKeyEvent", type="keyUp", key=key)

    def offline(self, is_offline):
        self.send("Network.emulateNetworkConditions", offline=is_offline, latency=0, downloadThroughput=-1,
                  uploadThroughput=-1)  # fmt: skip

    def resize(self, width=1200, height=900, dark=False):
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", features=features)

    def screenshot(self, path):
        data = self.send("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def errors(self):
        """What the page has thrown or logged as an error so far, without failed requests."""
        thrown = [each["params"] for each in self.events if each["method"] == "Runtime.exceptionThrown"]
        logged = [each["params"]["entry"] for each in self.events if each["method"] == "Log.entryAdded"]
        return [*thrown, *(entry for entry in logged if entry["level"] == "error" and entry["source"] != "network")]

    def close(self):
        self.browser.send("Target.closeTarget", targetId=self.target)
