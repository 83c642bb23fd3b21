"""Which requests the servers of the local stack refuse."""

import http.client
import threading
from http.server import ThreadingHTTPServer

import pytest

from endpoint.origins import refusal
from local.emulator.browsers import Guarded

HOST = "127.0.0.1:4566"


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"host": HOST},
        {"host": HOST, "origin": f"http://{HOST}", "sec-fetch-site": "same-origin"},
        {"host": HOST, "sec-fetch-site": "none"},
        {"host": "bucket.s3.localhost:4566"},
        {"host": "172.17.0.1:4566"},
        {"host": "[::1]:4566"},
        {"host": "sqs.us-east-1.amazonaws.com"},
    ],
)
def test_clients_and_the_stacks_own_pages_are_served(headers):
    assert refusal(headers) is None


@pytest.mark.parametrize(
    "headers",
    [
        {"host": HOST, "origin": "http://evil.example"},
        {"host": HOST, "origin": "null"},
        {"host": HOST, "origin": "http://127.0.0.1:8000"},
        {"host": HOST, "sec-fetch-site": "cross-site"},
        {"host": HOST, "sec-fetch-site": "same-site"},
        {"host": "evil.example:4566", "origin": "http://evil.example:4566", "sec-fetch-site": "same-origin"},
        {"host": "evil-localhost:4566"},
    ],
)
def test_pages_of_another_origin_are_refused(headers):
    assert refusal(headers)


def test_a_server_with_any_name_refuses_the_pages_of_another_origin_alone():
    """SageMaker chooses the name of its containers."""
    assert refusal({"host": "model.aws.local:8080"})
    assert refusal({"host": "model.aws.local:8080"}, any_host=True) is None
    assert refusal({"host": "model.aws.local:8080", "sec-fetch-site": "cross-site"}, any_host=True)
    assert refusal({"host": "model.aws.local:8080", "origin": "http://evil.example"}, any_host=True)


@pytest.mark.parametrize("value", ["http://[", "http://a]b", "//", "\x00"])
def test_a_header_that_cannot_be_parsed_is_refused(value):
    assert refusal({"host": HOST, "origin": value})
    assert refusal({"host": "[" + value})


def test_a_guarded_server_reads_no_request_of_a_foreign_page():
    class Server(Guarded):
        def do_POST(self):
            self.send_response(204)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    statuses = []
    for headers in ({}, {"Origin": "http://evil.example"}, {"Sec-Fetch-Site": "cross-site"}):
        connection = http.client.HTTPConnection(*server.server_address)
        connection.request("POST", "/", headers=headers)
        statuses.append(connection.getresponse().status)
    server.shutdown()
    assert statuses == [204, 403, 403]
