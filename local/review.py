"""make review [STACK=name PORT=port REVIEWER=name]: review the images that wait for people, on a page in your browser.

Reviews of the stack on AWS use your own credentials; the stack's ReviewerPolicy has the permissions. The page's URL is
the same every time, so that a page that is still open goes on when this command is started again.
"""

import argparse
import contextlib
import dataclasses
import functools
import getpass
import json
import secrets
import socket
from collections.abc import Iterator

import boto3
from botocore.config import Config

from functions.predictions import split_labels
from local.command import LOCAL, StackError, UsageError, check_reviewer, console, lock, report_errors, step
from local.deployment import STACK_NAME, existing
from local.target import Target, target
from review.backlog import Backlog
from review.server import Reviewing, bind, create_app, serve
from review.table import ReviewTable

PAGES = LOCAL / "review.json"  # the port and the token of each stack's page
# The page repeats what fails, so a request must not hold a thread of the server for minutes.
QUICK = Config(connect_timeout=3, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 2})
# Those above 1023 of https://fetch.spec.whatwg.org/#port-blocking: browsers open no page there.
BLOCKED_PORTS = {1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060, 5061, 6000, 6566}
BLOCKED_PORTS |= {*range(6665, 6670), 6679, 6697, 10080}
NOT_RUNNING = """The local stack is not running, so no image waits for review. Start it, and classify images:
  make up        starts the local stack and keeps it running
  make run       classifies the digits, a few of which are unsure; or make classify IMAGE=path
  make review    shows what waits for review
For a stack on AWS: make review STACK=name"""


@contextlib.contextmanager
def chosen(stack_name: str) -> Iterator[Target]:
    """The stack on AWS, or the running local one, which other commands can use at the same time."""
    if stack_name:
        with target(stack_name) as found:
            yield dataclasses.replace(found, client=functools.partial(boto3.Session().client, config=QUICK))
        return
    with lock(shared=True):
        if not (found_here := existing()):
            raise StackError(NOT_RUNNING)
        stack, outputs = found_here
        yield Target(STACK_NAME, outputs, stack.client, stack)


def reviewer_of(found: Target, given: str) -> str:
    """The name that decisions bear: the given one, else the user's on AWS or on this machine."""
    if given:
        return given
    if not found.local:  # arn:aws:sts::123456789012:assumed-role/Reviewers/mary@example.com
        arn: str = found.client("sts").get_caller_identity()["Arn"]
        return arn.rpartition("/")[2].rpartition(":")[2]
    try:
        return getpass.getuser()
    except (KeyError, OSError, ImportError):
        raise UsageError("This user has no name: make review REVIEWER=name") from None


def parse_port(text: str) -> int:
    """The port; 0, which is any, if the text is empty. Raises UsageError."""
    if not text:
        return 0
    if not text.isdecimal() or not 1024 <= int(text) <= 65535:
        raise UsageError(f"PORT={text} is not usable: give a number from 1024 to 65535, or none for a free port")
    if int(text) in BLOCKED_PORTS:
        raise UsageError(f"PORT={text} is blocked by browsers: give another one, or none for a free port")
    return int(text)


def address(name: str, port: int) -> tuple[socket.socket, str]:
    """The socket and the token of a stack's page: those of last time, if that port is still free and none is given."""
    try:
        pages = json.loads(PAGES.read_text())
    except (OSError, ValueError):
        pages = {}
    last_port, token = pages.get(name, (0, secrets.token_urlsafe(24)))
    try:
        bound = bind(port or last_port)
    except OSError as error:
        if port:
            raise UsageError(
                f"PORT={port} cannot be used ({error.strerror}): give another one, or none for a free port"
            ) from None
        bound = bind(0)
    pages[name] = (last_port if port else bound.getsockname()[1], token)  # a given port is for this time only
    PAGES.touch(mode=0o600)
    PAGES.write_text(json.dumps(pages))
    return bound, token


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stack", default="", help="name of a stack on AWS; otherwise the local stack")
    parser.add_argument("--port", default="")
    parser.add_argument("--reviewer", default="", help="the name that decisions bear")
    options = parser.parse_args()
    with report_errors():
        port = parse_port(options.port)
        check_reviewer(options.reviewer)
        with chosen(options.stack) as found:
            if "ReviewTableName" not in found.outputs:
                raise StackError(f"{found.place} has no review table: deploy the current template first (make deploy)")
            table = ReviewTable(found.client("dynamodb"), found.outputs["ReviewTableName"])
            backlog = Backlog(table, reviewer_of(found, options.reviewer), split_labels(found.parameter("Labels")))
            with step("Reading what waits for review"):
                backlog.read()
            bound, token = address(found.name if not found.local else "", port)
            url = f"http://127.0.0.1:{bound.getsockname()[1]}/{token}/"
            pending = len(backlog.reviews)
            console.print(f"{pending or 'No'} image{'' if pending == 1 else 's'} to review, as {backlog.reviewer}.")
            console.print(f"Open {url}", soft_wrap=True)
            console.print("Ctrl-C ends it.")
            try:
                serve(create_app(Reviewing(backlog, found.client("s3"), found.place), token), bound)
            except KeyboardInterrupt:
                console.print()
            finally:
                console.print(f"Ended. Claims that were given up: {backlog.release_all()}")


if __name__ == "__main__":
    main()
