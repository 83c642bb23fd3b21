"""The copy of an endpoint's requests to its shadow variant, and the data capture of both variants, with their metrics.

https://docs.aws.amazon.com/sagemaker/latest/dg/model-shadow-deployment.html
https://docs.aws.amazon.com/sagemaker/latest/dg/model-monitor-data-capture-endpoint.html

The caller waits for neither: both are threads with bounded queues. What exceeds a queue is dropped and counted.
"""

import json
import queue
import random
import sys
import threading
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from email.message import Message
from typing import Any

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from endpoint.data_capture import capture_event

MAX_COPIES = 100  # requests that wait for the shadow variant
MAX_EVENTS = 1000  # that wait to be written
MAX_WRITTEN = 100  # events in an object
INFERENCE_ID = "X-Amzn-SageMaker-Inference-Id"
Invoke = Callable[[bytes, Message], None]
Answer = tuple[bytes, str]  # body and content type


class Shadow:
    """Copies requests to a variant whose answers no caller gets.

    invoke: raises nothing. share: of the requests, the shadow's weight by the production variant's.
    dropped: requests that it was too slow for.
    """

    def __init__(self, invoke: Invoke, share: float) -> None:
        self.invoke, self.share = invoke, share
        self.dropped = 0
        self.stopped = threading.Event()
        self.copies: queue.Queue[tuple[bytes, Message]] = queue.Queue(MAX_COPIES)
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def copy(self, body: bytes, headers: Message) -> None:
        """Never waits, never raises."""
        if random.random() >= self.share:
            return
        try:
            self.copies.put_nowait((body, headers))
        except queue.Full:
            self.dropped += 1
            print(f"shadow: too slow, requests dropped: {self.dropped}", file=sys.stderr, flush=True)

    def stop(self) -> None:
        self.stopped.set()

    def _run(self) -> None:
        while not self.stopped.is_set():
            try:
                copy = self.copies.get(timeout=1)
            except queue.Empty:
                continue
            self.invoke(*copy)


class Recorder:
    """Writes the answers of an endpoint's variants to S3, and their metrics to CloudWatch.

    config: a DataCaptureConfig. An object has what was captured while the one before was written.
    """

    def __init__(self, endpoint_name: str, config: dict[str, Any], region: str) -> None:
        self.endpoint_name = endpoint_name
        session = boto3.Session(region_name=region)
        self.s3, self.cloudwatch = session.client("s3"), session.client("cloudwatch")
        self.bucket, _, self.prefix = config["DestinationS3Uri"].removeprefix("s3://").partition("/")
        self.share = float(config["InitialSamplingPercentage"]) / 100
        self.modes = {option["CaptureMode"] for option in config["CaptureOptions"]}
        self.json_types = config.get("CaptureContentTypeHeader", {}).get("JsonContentTypes", [])
        self.dropped = 0
        self.events: queue.Queue[tuple[str, float, int, str] | None] = queue.Queue(MAX_EVENTS)
        threading.Thread(target=self._run, daemon=True).start()

    def add(
        self, variant: str, seconds: float, body: bytes, headers: Message, status: int, answer: Answer | None
    ) -> None:
        """Queue what a variant answered. status: of HTTP; answer: None if it failed. Never waits, never raises."""
        event = ""
        if answer and random.random() < self.share:
            response, response_type = answer
            made = capture_event(
                datetime.now(UTC), headers.get("Content-Type", ""), body, response_type, response,
                headers.get(INFERENCE_ID), self.json_types,
            )  # fmt: skip
            for mode, side in (("Input", "endpointInput"), ("Output", "endpointOutput")):
                if not self.modes & {mode, "InputAndOutput"}:
                    del made["captureData"][side]
            event = json.dumps(made)
        try:
            self.events.put_nowait((variant, seconds, status, event))
        except queue.Full:
            self.dropped += 1
            print(f"data capture: events dropped: {self.dropped}", file=sys.stderr, flush=True)

    def stop(self) -> None:
        """Write what is queued, and end."""
        self.events.put(None)

    def _run(self) -> None:
        ended = False
        while not ended:
            rows = [self.events.get()]
            while len(rows) < MAX_WRITTEN and not self.events.empty():
                rows.append(self.events.get())
            ended = None in rows
            for variant in sorted({row[0] for row in rows if row}):
                of_variant = [row[1:] for row in rows if row and row[0] == variant]
                try:
                    self._write(variant, [event for *_, event in of_variant if event])
                    self._publish(variant, of_variant)
                except (ClientError, BotoCoreError) as error:
                    print(f"data capture: {error}", file=sys.stderr, flush=True)

    def _write(self, variant: str, events: list[str]) -> None:
        if events:
            now = datetime.now(UTC)
            name = f"{now:%Y/%m/%d/%H/%M-%S}-{now.microsecond // 1000:03}-{uuid.uuid4()}.jsonl"
            key = "/".join(filter(None, [self.prefix.strip("/"), self.endpoint_name, variant, name]))
            body = "".join(f"{event}\n" for event in events).encode()
            self.s3.put_object(Bucket=self.bucket, Key=key, Body=body)

    def _publish(self, variant: str, rows: list[tuple[float, int, str]]) -> None:
        """https://docs.aws.amazon.com/sagemaker/latest/dg/monitoring-cloudwatch.html"""
        values = {
            "ModelLatency": ("Microseconds", [1e6 * seconds for seconds, status, _ in rows if status == 200]),
            "Invocations": ("Count", [1.0] * len(rows)),
            "Invocation4XXErrors": ("Count", [float(400 <= status < 500) for _, status, _ in rows]),
            "Invocation5XXErrors": ("Count", [float(status < 200 or status >= 500) for _, status, _ in rows]),
        }
        dimensions = [
            {"Name": "EndpointName", "Value": self.endpoint_name},
            {"Name": "VariantName", "Value": variant},
        ]
        data = [
            {"MetricName": name, "Dimensions": dimensions, "Unit": unit, "Values": numbers}
            for name, (unit, numbers) in values.items()
            if numbers
        ]
        self.cloudwatch.put_metric_data(Namespace="AWS/SageMaker", MetricData=data)
