"""One function in Docker, by `sam local invoke`, with the local stack behind it.

    make invoke FUNCTION=ClassifyImageFunction EVENT=events/classify_image.json

`sam local` gives a container the variables of the template, and no others: the functions get the addresses of the local
stack from a copy of the built template that has them. The stack listens on 127.0.0.1, where no container can reach it:
while the function runs, what a container sends to the address of Docker's bridge is passed on.
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

from local.command import LOCAL, ROOT, StackError, console, lock, told
from local.deployment import BUILD, architecture, deployed
from local.emulator.processes import Stack, clean_environment

SAM = LOCAL / "venvs/sam/bin/sam"
MAKE_IMAGE = ROOT / "tools/lambda_image.sh"
SAMPLE = ROOT / "events/classify_image.json"


def docker_problem() -> str | None:
    """Why no container can be started here, and what to do about it."""
    if not shutil.which("docker"):
        return "Docker is not installed. On Debian and Ubuntu: apt-get install docker.io"
    if subprocess.run(["docker", "info"], capture_output=True).returncode:
        return "Docker's engine does not answer: systemctl start docker (or dockerd), as a user who may use it"
    return None


def make_image() -> None:
    """The base image of the functions' runtime."""
    made = subprocess.run([MAKE_IMAGE], stdout=sys.stderr, stderr=subprocess.PIPE, text=True)
    if made.returncode:
        raise StackError(f"There is no base image for the functions:\n{made.stderr.strip()}")


def bridge_address() -> str:
    """This machine's address in the network of the containers."""
    form = "{{range .IPAM.Config}}{{json .}}\n{{end}}"
    inspect = ["docker", "network", "inspect", "bridge", "--format", form]
    networks = subprocess.run(inspect, capture_output=True, text=True, check=True).stdout.splitlines()
    (network,) = (found for line in networks if line and ":" not in (found := json.loads(line))["Subnet"])
    return network.get("Gateway") or str(next(ipaddress.ip_network(network["Subnet"]).hosts()))


class Forwarder(socketserver.ThreadingTCPServer):
    """Passes on what is sent to a port of `address`, that the system chooses, to a port of 127.0.0.1."""

    daemon_threads = True

    def __init__(self, address: str, port: int):
        super().__init__((address, 0), ForwarderHandler)
        self.url = "http://{}:{}".format(*self.server_address)
        self.port = port


class ForwarderHandler(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        with socket.create_connection(("127.0.0.1", self.server.port)) as service:
            back = threading.Thread(target=self.copy, args=(service, self.request))
            back.start()
            self.copy(self.request, service)
            back.join()

    def copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):  # either side may hang up
            while data := source.recv(65536):
                target.sendall(data)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


@contextlib.contextmanager
def reachable(stack: Stack) -> Iterator[dict[str, str]]:
    """Let containers reach the stack: the variables that tell them where it is."""
    address = bridge_address()
    with contextlib.ExitStack() as servers:
        urls = {}
        for name in ("emulator", "sagemaker"):
            try:
                server = servers.enter_context(Forwarder(address, stack.ports[name]))
            except OSError as error:
                raise StackError(
                    f"Docker's bridge is not on this machine ({address}: {error}): the local stack needs a Docker "
                    "engine on the same Linux, not one in a virtual machine or without root."
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
    """A copy of the built template whose functions have these variables too."""
    template = yaml.safe_load((BUILD / "template.yaml").read_text())
    template["Globals"]["Function"]["Environment"]["Variables"] |= variables
    for resource in template["Resources"].values():
        if resource["Type"] == "AWS::Serverless::Function":
            resource["Properties"]["CodeUri"] = str(BUILD / resource["Properties"]["CodeUri"])
    path = directory / "template.json"
    path.write_text(json.dumps(template))
    return path


def environment(stack: Stack, variables: dict[str, str]) -> dict[str, str]:
    """SAM's own, which goes before the template's values: so it has the addresses of the containers too."""
    return clean_environment() | stack.aws_variables | variables


def command(what: str, template: Path, *arguments: str) -> list[str]:
    """`sam local invoke` or `sam local start-lambda`, for this machine's processor."""
    overrides = f"Architecture={architecture()}"
    options = ["--config-env", "local", "--template", str(template), "--parameter-overrides", overrides]
    return [str(SAM), "local", what, *arguments, "--skip-pull-image", *options]


def upload_sample(stack: Stack) -> None:
    """The picture of events/ where events/ says that it lies."""
    event = json.loads(SAMPLE.read_text())
    s3 = stack.client("s3")
    s3.create_bucket(Bucket=event["s3_bucket"])
    s3.put_object(Bucket=event["s3_bucket"], Key=event["s3_key"], Body=base64.b64decode(event["image"]["data"]))


def invoke(stack: Stack, function: str, event: str) -> int:
    with tempfile.TemporaryDirectory() as directory, reachable(stack) as variables:
        line = command("invoke", template_with(variables, Path(directory)), function, "--event", event)
        console.print(f"$ sam {shlex.join(line[1:])}", markup=False, soft_wrap=True)
        return subprocess.run(line, env=environment(stack, variables)).returncode


def check(function: str, event: str) -> None:
    """Raise StackError for a function that the template has not, or an event that is no file."""
    resources = yaml.safe_load((BUILD / "template.yaml").read_text())["Resources"]
    names = [name for name, resource in resources.items() if resource["Type"] == "AWS::Serverless::Function"]
    if function not in names:
        raise StackError(f"FUNCTION={function} is none of {', '.join(names)}")
    if not Path(event).is_file():
        raise StackError(f"EVENT={event} is not a file; events/ has one for each function")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("function", help="of template.yaml: ClassifyImageFunction")
    parser.add_argument("event", help="a file: events/classify_image.json")
    options = parser.parse_args()
    with told(), lock():
        check(options.function, options.event)
        if problem := docker_problem():
            raise StackError(problem)
        make_image()
        with deployed() as (stack, _):
            upload_sample(stack)
            return invoke(stack, options.function, options.event)


if __name__ == "__main__":
    sys.exit(main())
