"""An emulated AWS with nothing deployed, for the conformance tests."""

import os
import signal
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path

import boto3
from botocore.config import Config

from local.emulator.processes import free_port, module
from resources import eventually

ROOT = Path(__file__).parents[2]
EMULATOR_PYTHON = os.environ.get("EMULATOR_PYTHON", str(ROOT / ".local/venvs/emulator/bin/python"))
LAMBDA_PYTHON = os.environ.get("LAMBDA_PYTHON", str(ROOT / ".local/venvs/lambda/bin/python"))
PLAIN = os.environ.get("EMULATOR") == "plain"
WAIT_SCALE = 0.02  # a retry's delay of 50 seconds takes one here
SECONDS_TO_END = 15
ROLE = "arn:aws:iam::000000000000:role/conformance"

# A minimal SageMaker container; the request's body selects its behaviour.
MODEL_SERVER = """
import http.server, json, os, sys, time

class Server(http.server.BaseHTTPRequestHandler):
    def respond(self, status, body):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self):
        self.respond(200, b"")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        weights = open(os.environ["SM_MODEL_DIR"] + "/weights.txt").read()
        if body == b"slow":
            time.sleep(1)
        if body == b"fail":
            self.respond(500, b"no such label")
        elif body == b"die" or weights == "dies":
            os._exit(1)
        else:
            self.respond(200, json.dumps({"weights": weights, "environment": dict(os.environ)}).encode())

if open(os.environ["SM_MODEL_DIR"] + "/weights.txt").read() == "broken":
    sys.exit("these weights are broken")
port = int(os.environ["SAGEMAKER_BIND_TO_PORT"])
http.server.ThreadingHTTPServer((sys.argv[sys.argv.index("--host") + 1], port), Server).serve_forever()
"""


def is_up(url):
    try:
        return urllib.request.urlopen(url, timeout=1).status == 200
    except OSError:
        return False


class Emulator:
    """The emulator's processes, and clients for them."""

    def __init__(self, directory, **variables):
        self.port, self.sagemaker_port = free_port(socket.SOCK_STREAM), free_port(socket.SOCK_STREAM)
        self.xray_port = free_port(socket.SOCK_DGRAM)
        self.segments = directory / "segments.jsonl"
        url = f"http://127.0.0.1:{self.port}"
        sagemaker_url = url if PLAIN else f"http://127.0.0.1:{self.sagemaker_port}"
        self.environment = {
            "PATH": os.environ["PATH"],
            "GATEWAY_PORT": str(self.port),
            "BIND_HOST": "127.0.0.1",
            "MINISTACK_HOST": "localhost",
            "LOG_LEVEL": "ERROR",
            "SFTP_ENABLED": "0",
            "IOT_MTLS_ENABLED": "0",
            "DOCKER_HOST": "unix:///nonexistent.sock",
            "SFN_WAIT_SCALE": str(WAIT_SCALE),
            "TMPDIR": str(directory),
            "LAMBDA_PYTHON": LAMBDA_PYTHON,
            "PYTHONPATH": "/host/only",
            "AWS_ENDPOINT_URL": url,
            "AWS_ENDPOINT_URL_SAGEMAKER": sagemaker_url,
            "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": sagemaker_url,
            "AWS_XRAY_DAEMON_ADDRESS": f"127.0.0.1:{self.xray_port}",
            "AWS_ACCESS_KEY_ID": "test",
            "AWS_SECRET_ACCESS_KEY": "test",
            "AWS_DEFAULT_REGION": "us-east-1",
            **variables,
        }
        server = directory / "server.py"
        server.write_text(MODEL_SERVER)
        if PLAIN:
            commands = [[EMULATOR_PYTHON, "-m", "ministack"]]
        else:
            sagemaker = ["--port", str(self.sagemaker_port), "--work-dir", directory / "sagemaker", "--server", server]
            commands = [
                [EMULATOR_PYTHON, *module("emulator")],
                [sys.executable, *module("sagemaker"), *sagemaker],
                [sys.executable, *module("xray"), "--port", str(self.xray_port), "--output", self.segments],
            ]
        self.processes = [subprocess.Popen(command, cwd=ROOT, env=self.environment) for command in commands]
        assert eventually(lambda: is_up(f"{url}/_ministack/health"), 20)

    def client(self, service):
        url = {"sagemaker": "_SAGEMAKER", "sagemaker-runtime": "_SAGEMAKER_RUNTIME"}.get(service, "")
        return boto3.client(
            service,
            endpoint_url=self.environment[f"AWS_ENDPOINT_URL{url}"],
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=Config(retries={"total_max_attempts": 1}),
        )

    def stop(self):
        for process in self.processes:
            process.send_signal(signal.SIGTERM)
        for process in self.processes:
            process.wait(20)


def deploy(client, name, template, action="create"):
    cloudformation = client("cloudformation")
    getattr(cloudformation, f"{action}_stack")(StackName=name, TemplateBody=template)
    waiter = cloudformation.get_waiter(f"stack_{action}_complete")
    waiter.wait(StackName=name, WaiterConfig={"Delay": 0.2, "MaxAttempts": 50})
    outputs = cloudformation.describe_stacks(StackName=name)["Stacks"][0]["Outputs"]
    return {output["OutputKey"]: output["OutputValue"] for output in outputs}
