"""Emulate SageMaker's control and runtime APIs on one port; each endpoint is a real server process.

The resources are kept in the work directory, so that a restarted process serves the same endpoints. An endpoint
downloads its model archive from the emulated S3 and starts the model server on it, under the contract of
https://docs.aws.amazon.com/sagemaker/latest/dg/your-algorithms-inference-code.html, in this Python environment instead
of a container. Usage: python -m local.emulator.sagemaker_api --port 4567 --work-dir .local/sagemaker
"""

import argparse
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tarfile
import threading
import time
from email.message import Message
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import Any

import boto3
import urllib3

from endpoint.package import check_unpacked_size
from local.emulator.browsers import Guarded
from local.emulator.variants import Recorder, Shadow

ACCOUNT, REGION = "000000000000", os.environ.get("AWS_DEFAULT_REGION", "us-east-1")
KINDS = {"Model": "model", "EndpointConfig": "endpoint-config", "Endpoint": "endpoint"}  # the resource types in ARNs
TIMEOUT = 60  # seconds, of startup and of an invocation
resources: dict[str, dict[str, dict[str, Any]]] = {kind: {} for kind in KINDS}
lock = threading.RLock()  # of resources
fleets: dict[str, "Fleet"] = {}  # by endpoint name
processes: list[subprocess.Popen[bytes]] = []


class ApiError(Exception):
    """An error response of the API, with its HTTP status, error code and message."""

    def __init__(self, status: int, code: str, message: str, **members: Any) -> None:
        super().__init__(message)
        self.status, self.body = status, {"__type": code, "message": message, **members}


class Container:
    """A model server process for one version of a model. recorder: of what it answers, None without data capture."""

    def __init__(self, endpoint_name: str, variant: dict[str, Any], recorder: Recorder | None) -> None:
        self.recorder = recorder
        self.variant = variant["VariantName"]
        serverless = variant.get("ServerlessConfig")
        self.body_limit = 4_194_304 if serverless else 6_291_456
        self.slots = threading.Semaphore(int(serverless["MaxConcurrency"]) if serverless else 1000)
        self.directory = options.work_dir.resolve() / f"{endpoint_name}-{time.time_ns()}"
        model = find("Model", variant["ModelName"])["PrimaryContainer"]
        self.environment = model.get("Environment", {})
        self.starting = threading.Lock()
        self.fetch(model["ModelDataUrl"])
        self.start()

    def fetch(self, url: str) -> None:
        self.directory.mkdir(parents=True)
        bucket, key = url.removeprefix("s3://").split("/", 1)
        boto3.client("s3", region_name=REGION).download_file(bucket, key, self.directory / "model.tar.gz")
        with tarfile.open(self.directory / "model.tar.gz") as archive:
            check_unpacked_size(archive, url)
            archive.extractall(self.directory / "model", filter="data")

    def start(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = str(free.getsockname()[1])
        self.url = f"http://127.0.0.1:{port}"
        self.http = urllib3.PoolManager(maxsize=32, retries=False)  # its own: closes with it what a dead one left open
        model_dir = str(self.directory / "model")
        variables = {"SAGEMAKER_MODEL_SERVER_WORKERS": "1"}  # leaves cores for everything else on this machine
        variables |= {name: value.replace("/opt/ml/model", model_dir) for name, value in self.environment.items()}
        variables.pop("PYTHONPATH", None)  # the archive's packages are for the container's Python
        variables |= {"SM_MODEL_DIR": model_dir, "SAGEMAKER_BIND_TO_PORT": port}
        log = self.directory / "server.log"
        command = [sys.executable, options.server, "serve", "--host", "127.0.0.1"]
        with log.open("ab") as output:
            self.process = subprocess.Popen(command, env=os.environ | variables, stdout=output, stderr=output)
        processes.append(self.process)
        deadline = time.monotonic() + TIMEOUT
        while not self.is_healthy():
            if self.process.poll() is not None or time.monotonic() > deadline:
                self.process.kill()
                reason = f"production variant {self.variant} did not pass the ping health check"
                raise RuntimeError(f"The primary container for {reason}. {log.read_text(errors='replace')[-800:]}")
            time.sleep(0.05)

    def is_healthy(self) -> bool:
        try:
            return self.http.request("GET", f"{self.url}/ping", timeout=2).status == 200
        except urllib3.exceptions.HTTPError:
            return False

    def invoke(self, body: bytes, headers: Message) -> tuple[bytes, dict[str, str]]:
        started = time.perf_counter()
        status, answer = 500, None
        try:
            response, response_headers = self.respond(body, headers)
            status, answer = 200, (response, response_headers["Content-Type"])
        except ApiError as error:
            status = error.body.get("OriginalStatusCode", error.status)
            raise
        finally:
            if self.recorder:
                self.recorder.add(self.variant, time.perf_counter() - started, body, headers, status, answer)
        return response, response_headers

    def invoke_copy(self, body: bytes, headers: Message) -> None:
        """Answer a copy of a request, as a shadow variant. A failure, also of a restart, is only logged."""
        try:
            self.invoke(body, headers)
        except (ApiError, RuntimeError) as error:
            print(f"{self.variant}: {error}", file=sys.stderr, flush=True)

    def respond(self, body: bytes, headers: Message) -> tuple[bytes, dict[str, str]]:
        """https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_runtime_InvokeEndpoint.html"""
        if len(body) > self.body_limit:
            raise ApiError(413, "413", f"HTTP content length exceeded {self.body_limit} bytes.")
        if not self.slots.acquire(blocking=False):
            raise ApiError(429, "ThrottlingException", "The endpoint's maximum concurrency is exceeded.")
        with self.starting:  # SageMaker replaces a container that died
            if self.process.poll() is not None:
                self.start()
        passed = {name: headers[name] for name in ("Content-Type", "Accept") if name in headers}
        url = f"{self.url}/invocations"
        try:
            response = self.http.request("POST", url, body=body, headers=passed, timeout=TIMEOUT)
            status, message = response.status, response.data.decode(errors="replace")
        except urllib3.exceptions.ReadTimeoutError:
            status, message = 0, "Your invocation timed out while waiting for a response from container primary."
        except urllib3.exceptions.HTTPError as error:
            raise ApiError(503, "ServiceUnavailable", f"The endpoint's container does not respond: {error}") from error
        finally:
            self.slots.release()
        if not 200 <= status < 300:
            text = f'Received error ({status}) from primary with message "{message}".'
            raise ApiError(424, "ModelError", text, OriginalStatusCode=status, OriginalMessage=message)
        content_type = response.headers.get("Content-Type", "application/octet-stream")
        return response.data, {"Content-Type": content_type, "x-amzn-invoked-production-variant": self.variant}


class Fleet:
    """The processes of an endpoint's configuration: its production variant, which answers, and its shadow variant."""

    def __init__(self, endpoint_name: str, config: dict[str, Any]) -> None:
        (variant,), shadows = config["ProductionVariants"], config.get("ShadowProductionVariants", [])
        capture = config.get("DataCaptureConfig", {})
        enabled = capture and str(capture.get("EnableCapture", True)).lower() == "true"
        self.recorder = Recorder(endpoint_name, capture, REGION) if enabled else None
        self.containers: list[Container] = []
        self.shadows: list[Shadow] = []
        try:
            for each in [variant, *shadows]:
                self.containers.append(Container(endpoint_name, each, self.recorder))
        except BaseException:
            self.stop()
            raise
        weight = float(variant.get("InitialVariantWeight", 1))
        self.shadows = [
            Shadow(container.invoke_copy, float(each.get("InitialVariantWeight", 1)) / weight)
            for container, each in zip(self.containers[1:], shadows, strict=True)
        ]

    def invoke(self, body: bytes, headers: Message) -> tuple[bytes, dict[str, str]]:
        for shadow in self.shadows:
            shadow.copy(body, headers)
        return self.containers[0].invoke(body, headers)

    def stop(self) -> None:
        for shadow in self.shadows:
            shadow.stop()
        for container in self.containers:
            container.process.terminate()
        if self.recorder:
            self.recorder.stop()


def deploy(endpoint: dict[str, Any], config_name: str) -> None:
    """Start the configuration's fleet and switch to it; the previous fleet serves until then."""
    name = endpoint["EndpointName"]
    try:
        fleet = Fleet(name, find("EndpointConfig", config_name))
    except Exception as error:  # DescribeEndpoint reports every failure
        endpoint |= {"EndpointStatus": "Failed", "FailureReason": str(error)}
        return
    with lock:
        old = fleets.get(name)
        if endpoint is resources["Endpoint"].get(name):
            fleets[name] = fleet
            endpoint |= {"EndpointStatus": "InService", "EndpointConfigName": config_name}
            endpoint["LastModifiedTime"] = time.time()
            endpoint.pop("FailureReason", None)
            save()
        else:
            old = fleet  # the endpoint was deleted meanwhile
    if old:
        old.stop()


def save() -> None:
    path = options.work_dir / "resources.json"
    path.with_suffix(".tmp").write_text(json.dumps(resources))
    path.with_suffix(".tmp").replace(path)


def restore() -> None:
    """Start the endpoints of a process that died; until then, connections to the port are refused."""
    path = options.work_dir / "resources.json"
    if path.exists():
        resources.update(json.loads(path.read_text()))
    for endpoint in list(resources["Endpoint"].values()):
        deploy(endpoint, endpoint["EndpointConfigName"])


def find(kind: str, name: str) -> dict[str, Any]:
    if name not in resources[kind]:
        raise ApiError(400, "ValidationException", f'Could not find {KINDS[kind]} "{name}".')
    return resources[kind][name]


def control(target: str, request: dict[str, Any]) -> dict[str, Any]:
    """https://docs.aws.amazon.com/sagemaker/latest/APIReference/API_Operations_Amazon_SageMaker_Service.html"""
    match = re.fullmatch(r"SageMaker\.(Create|Describe|Update|Delete)(Model|EndpointConfig|Endpoint)", target)
    if not match:
        raise ApiError(400, "UnknownOperationException", f"{target} is not emulated.")
    action, kind = match.groups()
    name = request[f"{kind}Name"]
    if action == "Create":
        if name in resources[kind]:
            raise ApiError(400, "ValidationException", f'Cannot create already existing {KINDS[kind]} "{name}".')
        arn = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:{KINDS[kind]}/{name}"
        resources[kind][name] = request | {f"{kind}Arn": arn, "CreationTime": time.time()}
    resource = find(kind, name)
    if action == "Delete":
        del resources[kind][name]
        if kind == "Endpoint" and name in fleets:
            fleets.pop(name).stop()
    elif kind == "Endpoint" and action != "Describe":
        resource["EndpointStatus"] = "Creating" if action == "Create" else "Updating"
        threading.Thread(target=deploy, args=(resource, request["EndpointConfigName"]), daemon=True).start()
    return resource


class Api(Guarded):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        try:
            status, (response, headers) = 200, self.dispatch(body)
        except ApiError as error:
            status, response = error.status, json.dumps(error.body).encode()
            headers = {"Content-Type": "application/json", "x-amzn-errortype": error.body["__type"]}
        self.send_response(status)
        for name, value in {**headers, "Content-Length": str(len(response))}.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(response)

    def dispatch(self, body: bytes) -> tuple[bytes, dict[str, str]]:
        if target := self.headers["X-Amz-Target"]:
            with lock:
                response = json.dumps(control(target, json.loads(body)))
                save()
            return response.encode(), {"Content-Type": "application/x-amz-json-1.1"}
        name = self.path.split("/")[2]
        if name not in fleets:
            raise ApiError(400, "ValidationError", f"Endpoint {name} of account {ACCOUNT} not found.")
        return fleets[name].invoke(body, self.headers)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--work-dir", type=Path, required=True)
    parser.add_argument("--server", default="endpoint/server.py", help="script of the model server")
    options = parser.parse_args()
    options.work_dir.mkdir(parents=True, exist_ok=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit())
    try:
        restore()
        ThreadingHTTPServer(("127.0.0.1", options.port), Api).serve_forever()
    finally:
        for process in processes:
            process.terminate()
