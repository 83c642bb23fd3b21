"""What the endpoint was asked and answered, as JSON Lines in the form of SageMaker's data capture.

One event a line, in <folder>/<yyyy>/<mm>/<dd>/<hh>/<a name of this process>.jsonl (UTC):

    {"captureData": {"endpointInput": {"observedContentType": "image/jpeg", "mode": "INPUT", "data": "<base64>",
                                       "encoding": "BASE64"},
                     "endpointOutput": {"observedContentType": "application/json", "mode": "OUTPUT",
                                        "data": "{\\"predictions\\": ...}", "encoding": "JSON"}},
     "eventMetadata": {"eventId": "<uuid>", "inferenceTime": "2026-01-31T12:00:00Z"}, "eventVersion": "0"}

A thread of its own encodes and writes: an answer never waits for a disk. When the disk falls so far behind that
MAX_WAITING_BYTES wait for it, or fails, events are lost, and the log says how many.
"""

import base64
import errno
import json
import os
import queue
import sys
import threading
import uuid
from datetime import UTC, datetime
from pathlib import Path

MAX_WAITING_BYTES = 64_000_000
JSON_TYPES = ("application/json", "application/jsonlines")


class Capture:
    def __init__(self, folder):
        self.folder = Path(folder)
        self.name = f"{uuid.uuid4()}.jsonl"
        self.events = queue.SimpleQueue()
        self.lock = threading.Lock()
        self.waiting_bytes = 0
        self.lost = 0
        self.thread = threading.Thread(target=self._write_all, name="capture", daemon=True)
        self.thread.start()

    def add(self, content_type, body, answer_type, answer, inference_id=None):
        """Take an event for writing, or lose it: never waits, never raises. `body` and `answer` are bytes."""
        size = len(body) + len(answer)
        with self.lock:
            if self.waiting_bytes + size > MAX_WAITING_BYTES:
                self.lost += 1
                return
            self.waiting_bytes += size
        self.events.put((datetime.now(UTC), (content_type, body, answer_type, answer, inference_id), size))

    def close(self):
        """Write what waits, and end."""
        self.events.put(None)
        self.thread.join()

    def _write_all(self):
        while event := self.events.get():
            time, content, size = event
            try:
                self._write(time, capture_event(time, *content))
            except OSError as error:
                self._lose(f"{type(error).__name__}: {error}")
            with self.lock:
                self.waiting_bytes -= size
                lost, self.lost = self.lost, 0
            if lost:
                print(f"data capture: {lost} events lost, {self.folder} is too slow", file=sys.stderr, flush=True)

    def _lose(self, reason):
        print(f"data capture: 1 event lost, {reason}", file=sys.stderr, flush=True)

    def _write(self, time, event):
        path = self.folder / f"{time:%Y/%m/%d/%H}" / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(event).encode() + b"\n"
        with path.open("ab", buffering=0) as file:
            end = file.tell()
            if file.write(line) < len(line):
                file.truncate(end)  # half a line would spoil the next one
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def capture_event(time, content_type, body, answer_type, answer, inference_id=None):
    """One event of https://docs.aws.amazon.com/sagemaker/latest/dg/model-monitor-data-capture-endpoint.html"""
    metadata = {"eventId": str(uuid.uuid4()), "inferenceTime": f"{time:%Y-%m-%dT%H:%M:%SZ}"}
    return {
        "captureData": {
            "endpointInput": _side("INPUT", content_type, body),
            "endpointOutput": _side("OUTPUT", answer_type, answer),
        },
        "eventMetadata": metadata | ({"inferenceId": inference_id} if inference_id else {}),
        "eventVersion": "0",
    }


def _side(mode, content_type, data):
    media_type = content_type.split(";")[0].strip().lower()
    if media_type in JSON_TYPES:
        text, encoding = data.decode(errors="replace"), "JSON"
    else:
        text, encoding = base64.b64encode(data).decode(), "BASE64"
    return {"observedContentType": content_type, "mode": mode, "data": text, "encoding": encoding}
