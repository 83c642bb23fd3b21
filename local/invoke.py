"""Run one function in Docker with `sam local invoke`, connected to the local stack.

    make invoke FUNCTION=ClassifyImageFunction EVENT=events/classify_image.json

`sam local` passes only the template's environment variables to a container, so a copy of the built template adds the
addresses of the local stack. The stack listens on 127.0.0.1, which containers cannot reach: while the function runs,
forwarders on the address of Docker's bridge connect the two.
"""

import argparse
import base64
import contextlib
import ipaddress
import json
import shlex
import shutil
import socket
import socketserver
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import yaml

from local.command import ROOT, StackError, UsageError, console, report_errors
from local.deployment import BUILD, SAM, architecture, shared
from local.emulator.processes import Stack, clean_environment

BASE_IMAGE_SCRIPT = ROOT / "tools/lambda_image.sh"
SAMPLE = ROOT / "events/classify_image.json"


def docker_problem() -> str | None:
    """Why Docker cannot start containers here and what to do about it, or None."""
    if not shutil.which("docker"):
        return "Docker is not installed. On Debian and Ubuntu: apt-get install docker.io"
    if subprocess.run(["docker", "info"], capture_output=True).returncode:
        return "Docker's engine does not respond: run systemctl start docker (or dockerd), as a user with access to it"
    return None


def build_base_image() -> None:
    """Pull or build the base image of the functions' runtime; StackError if neither works."""
    result = subprocess.run([BASE_IMAGE_SCRIPT], stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    if result.returncode:
        raise StackError(f"The functions' base image cannot be built:\n{result.stderr.strip()}")


def bridge_address() -> str:
    """This machine's address on Docker's bridge network."""
    form = "{{range .IPAM.Config}}{{json .}}\n{{end}}"
    inspect = ["docker", "network", "inspect", "bridge", "--format", form]
    networks = subprocess.run(inspect, capture_output=True, text=True, check=True).stdout.splitlines()
    (network,) = (found for line in networks if line and ":" not in (found := json.loads(line))["Subnet"])
    return network.get("Gateway") or str(next(ipaddress.ip_network(network["Subnet"]).hosts()))


class Forwarder(socketserver.ThreadingTCPServer):
    """Forwards connections from a free port of `address` to `port` of 127.0.0.1."""

    daemon_threads = True

    def __init__(self, address: str, port: int) -> None:
        super().__init__((address, 0), ForwarderHandler)
        self.url = "http://{}:{}".format(*self.server_address)
        self.port = port


class ForwarderHandler(socketserver.BaseRequestHandler):
    server: Forwarder

    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.port)) as service:
            back = threading.Thread(target=self.copy, args=(service, self.request))
            back.start()
            self.copy(self.request, service)
            back.join()

    def copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):  # either side can hang up
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def forwarded(stack: Stack) -> Iterator[dict[str, str]]:
    """Let containers reach the stack; yields the environment variables with its addresses."""
    address = bridge_address()
    with contextlib.ExitStack() as servers:
        urls = {}
        for name in ("emulator", "sagemaker"):
            try:
                server = servers.enter_context(Forwarder(address, stack.ports[name]))
            except OSError as error:
                raise StackError(
                    f"Docker's bridge is not on this machine ({address}: {error}): use a Docker engine on the same "
                    "Linux, neither in a virtual machine nor rootless."
                ) from None
            threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True).start()
            servers.callback(server.shutdown)
            urls[name] = server.url
        no_proxy = f"127.0.0.1,localhost,{address}"
        yield {
            "AWS_ENDPOINT_URL": urls["emulator"],
            "AWS_ENDPOINT_URL_SAGEMAKER_RUNTIME": urls["sagemaker"],
            "NO_PROXY": no_proxy,
            "no_proxy": no_proxy,
        }


def template_with(variables: dict[str, str], directory: Path) -> Path:
    """Write a copy of the built template that adds these environment variables to every function."""
    template = yaml.safe_load((BUILD / "template.yaml").read_text())
    template["Globals"]["Function"]["Environment"]["Variables"] |= variables
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function":
            resource["Properties"]["CodeUri"] = str(BUILD / resource["Properties"]["CodeUri"])
    path = directory / "template.json"
    path.write_text(json.dumps(template))
    return path


def environment(stack: Stack, variables: dict[str, str]) -> dict[str, str]:
    """The environment of the SAM CLI, which overrides the template's values, hence the containers' variables."""
    return clean_environment() | stack.aws_variables | variables


def sam_command(subcommand: str, template: Path, *arguments: str) -> list[str]:
    """`sam local invoke` or `sam local start-lambda`, for this machine's architecture."""
    overrides = f"Architecture={architecture()}"
    options = ["--config-env", "local", "--template", str(template), "--parameter-overrides", overrides]
    return [*map(str, SAM), "local", subcommand, *arguments, "--skip-pull-image", *options]


def upload_sample(stack: Stack) -> None:
    """Upload the image of events/classify_image.json to the bucket and key that the events name."""
    event = json.loads(SAMPLE.read_text())
    s3 = stack.client("s3")
    s3.create_bucket(Bucket=event["s3_bucket"])
    s3.put_object(Bucket=event["s3_bucket"], Key=event["s3_key"], Body=base64.b64decode(event["image"]["data"]))


def invoke(stack: Stack, function: str, event: str) -> int:
    with tempfile.TemporaryDirectory() as directory, forwarded(stack) as variables:
        command = sam_command("invoke", template_with(variables, Path(directory)), function, "--event", event)
        console.print(f"$ sam {shlex.join(command[len(SAM) :])}", markup=False, soft_wrap=True)
        return subprocess.run(command, env=environment(stack, variables)).returncode


def check(function: str, event: str) -> None:
    """UsageError if the template has no such function or the event is not a file."""
    resources = yaml.safe_load((BUILD / "template.yaml").read_text())["Resources"]
    names = [name for name, resource in resources.items() if resource["Type"] == "AWS::Serverless::Function"]
    if function not in names:
        raise UsageError(f"FUNCTION={function} is not in the template: choose one of {', '.join(names)}")
    if not Path(event).is_file():
        raise UsageError(f"EVENT={event} is not a file; events/ has one for each function")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("function", help="logical ID in template.yaml, such as ClassifyImageFunction")
    parser.add_argument("event", help="JSON file, such as events/classify_image.json")
    options = parser.parse_args()
    with report_errors():
        check(options.function, options.event)
        if problem := docker_problem():
            raise StackError(problem)
        build_base_image()
        with shared() as (stack, _):
            upload_sample(stack)
            return invoke(stack, options.function, options.event)


if __name__ == "__main__":
    sys.exit(main())
