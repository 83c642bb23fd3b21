"""A substitute for the X-Ray daemon: appends each segment received over UDP to a file, as one line of JSON.

Any process of this machine can send to the port: whatever is no segment is skipped.

Usage: python -m local.emulator.xray_daemon --port 2000 --output segments.jsonl
"""

import argparse
import json
import socket
from typing import Any


def segment_in(datagram: bytes) -> dict[str, Any] | None:
    """The segment, which follows a line with the format's name; None if there is none."""
    try:
        document = json.loads(datagram.partition(b"\n")[2])
    except (ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--output", required=True)
    options = parser.parse_args()
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", options.port))
    with open(options.output, "a", buffering=1) as file:
        while True:
            if segment := segment_in(server.recv(65536)):
                file.write(json.dumps(segment) + "\n")
