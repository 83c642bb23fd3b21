"""A server closes a connection when the client has closed it: RFC 9112, section 9.6."""

from http.client import HTTPConnection
from pathlib import Path

from resources import eventually

CLOSE_WAIT = "08"  # in /proc/net/tcp: closed by the client only


def closed_by_the_client_only(port):
    rows = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
    return sum(row[1].endswith(f":{port:04X}") and row[3] == CLOSE_WAIT for row in rows)


def test_connections_do_not_outlive_their_clients(emulator):
    for _ in range(50):
        connection = HTTPConnection("127.0.0.1", emulator.port)
        connection.request("GET", "/_ministack/health")
        connection.getresponse().read()
        connection.close()
    assert eventually(lambda: closed_by_the_client_only(emulator.port) == 0)
