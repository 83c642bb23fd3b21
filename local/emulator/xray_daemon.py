"""A substitute for the X-Ray daemon: appends each segment received over UDP to a file, as one line of JSON.

Usage: python -m local.emulator.xray_daemon --port 2000 --output segments.jsonl
"""

import argparse
import socket

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--output", required=True)
    options = parser.parse_args()
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.0.0.1", options.port))
    with open(options.output, "a", buffering=1) as file:
        while True:
            _header, _, document = server.recv(65536).decode().partition("\n")
            file.write(document.replace("\n", " ") + "\n")
