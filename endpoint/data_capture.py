"""Capture of requests and responses, as JSON Lines in SageMaker's data capture format.

One event per line, in <folder>/<yyyy>/<mm>/<dd>/<hh>/<uuid of this process>.jsonl (UTC):

    {"captureData": {"endpointInput": {"observedContentType": "image/jpeg", "mode": "INPUT", "data": "<base64>",
                                       "encoding": "BASE64"},
                     "endpointOutput": {"observedContentType": "application/json", "mode": "OUTPUT",
                                        "data": "{\\"predictions\\": ...}", "encoding": "JSON"}},
     "eventMetadata": {"eventId": "<uuid>", "inferenceTime": "2026-01-31T12:00:00Z"}, "eventVersion": "0"}

A background thread encodes and writes, so that responses never wait for the disk. Events are dropped, and the log says
how many, if a write fails or MAX_QUEUED_BYTES are already queued.
"""

import base64
import errno
import json
import os
import queue
import sys
import threading
import uuid
from collections.abc import Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

MAX_QUEUED_BYTES = 64_000_000
JSON_TYPES = ("application/json", "application/jsonlines")
Exchange = tuple[str, bytes, str, bytes, str | None]  # the parameters of Capture.add


class Capture:
    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.name = f"{uuid.uuid4()}.jsonl"
        self.events: queue.SimpleQueue[tuple[datetime, Exchange, int] | None] = queue.SimpleQueue()
        self.lock = threading.Lock()
        self.queued_bytes = 0
        self.dropped = 0
        self.thread = threading.Thread(target=self._write_all, name="capture", daemon=True)
        self.thread.start()

    def add(
        self, content_type: str, body: bytes, response_type: str, response: bytes, inference_id: str | None = None
    ) -> None:
        """Queue an event, or drop it if the queue is full. Never blocks, never raises."""
        size = len(body) + len(response)
        with self.lock:
            if self.queued_bytes + size > MAX_QUEUED_BYTES:
                self.dropped += 1
                return
            self.queued_bytes += size
        self.events.put((datetime.now(UTC), (content_type, body, response_type, response, inference_id), size))

    def close(self) -> None:
        """Write the queued events and stop the thread."""
        self.events.put(None)
        self.thread.join()

    def _write_all(self) -> None:
        while event := self.events.get():
            time, exchange, size = event
            try:
                self._write(time, capture_event(time, *exchange))
            except OSError as error:
                self._log_dropped(1, f"{type(error).__name__}: {error}")
            with self.lock:
                self.queued_bytes -= size
                dropped, self.dropped = self.dropped, 0
            if dropped:
                self._log_dropped(dropped, f"{self.folder} is too slow")

    def _log_dropped(self, events: int, reason: str) -> None:
        print(f"data capture: events dropped: {events} ({reason})", file=sys.stderr, flush=True)

    def _write(self, time: datetime, event: dict[str, Any]) -> None:
        path = self.folder / f"{time:%Y/%m/%d/%H}" / self.name
        path.parent.mkdir(parents=True, exist_ok=True)
        line = json.dumps(event).encode() + b"\n"
        with path.open("ab", buffering=0) as file:
            end = file.tell()
            if file.write(line) < len(line):
                file.truncate(end)  # a partial line would corrupt the next one
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def capture_event(
    time: datetime,
    content_type: str,
    body: bytes,
    response_type: str,
    response: bytes,
    inference_id: str | None = None,
    json_types: Collection[str] = JSON_TYPES,
) -> dict[str, Any]:
    """One event, as in https://docs.aws.amazon.com/sagemaker/latest/dg/model-monitor-data-capture-endpoint.html

    json_types: the content types captured as text; base64 is for all others.
    """
    metadata = {"eventId": str(uuid.uuid4()), "inferenceTime": f"{time:%Y-%m-%dT%H:%M:%SZ}"}
    return {
        "captureData": {
            "endpointInput": _side("INPUT", content_type, body, json_types),
            "endpointOutput": _side("OUTPUT", response_type, response, json_types),
        },
        "eventMetadata": metadata | ({"inferenceId": inference_id} if inference_id else {}),
        "eventVersion": "0",
    }


def _side(mode: str, content_type: str, data: bytes, json_types: Collection[str]) -> dict[str, str]:
    media_type = content_type.split(";")[0].strip().lower()
    if media_type in json_types:
        text, encoding = data.decode(errors="replace"), "JSON"
    else:
        text, encoding = base64.b64encode(data).decode(), "BASE64"
    return {"observedContentType": content_type, "mode": mode, "data": text, "encoding": encoding}
