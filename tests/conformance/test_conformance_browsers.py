"""AWS accepts only signed requests, so no web page can use an account. The local stack refuses foreign web pages."""

import functools
import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import pytest

from emulated import ROOT, is_up
from local.emulator.processes import NO_PROXY, free_port
from resources import eventually
from tiny_model import write_tiny_model

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
# What a page can send to any origin without asking: AWS's Query protocol by fetch, form and image, and JSON as text.
PAGE = """<!doctype html><title>page</title><body><script>
const emulator = %s, sagemaker = %s, endpoint = %s
const send = (url, body, type) => fetch(url, {method: "POST", mode: "no-cors", body, headers: {"Content-Type": type}})
  .then(() => "sent", () => "failed")
async function attack() {
  await send(emulator, "Action=CreateQueue&QueueName=by-fetch", "application/x-www-form-urlencoded")
  await send(emulator + "/2015-03-31/functions", JSON.stringify({FunctionName: "by-page", Runtime: "python3.13",
    Role: "arn:aws:iam::000000000000:role/r", Handler: "a.b", Code: {ZipFile: ""}}), "text/plain")
  await fetch(emulator + "/?Action=CreateQueue&QueueName=by-get", {mode: "no-cors"}).catch(() => 0)
  const put = await fetch(emulator + "/by-put", {method: "PUT", body: ""}).then(r => r.status, () => "refused")
  const runtime = await fetch(sagemaker + "/endpoints/e/invocations", {method: "POST", body: "{}"})
    .then(r => r.status, () => "unreadable")
  await send(endpoint + "/invocations", "{}", "text/plain")
  await fetch(endpoint + "/ping", {mode: "no-cors"}).catch(() => 0)
  const form = document.createElement("form")
  Object.assign(form, {method: "post", action: emulator + "/?Action=CreateQueue&QueueName=by-form", target: "frame"})
  document.body.append(form, Object.assign(document.createElement("iframe"), {name: "frame"}))
  form.submit()
  await new Promise(done => setTimeout(done, 700))
  document.title = "done"
}
attack()
</script>"""


class Page(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def visit(tmp_path):
    """Open the page in headless Chromium from a server of its own, under a host name; returns the resulting DOM."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if not browser:
        pytest.skip("needs Chromium: apt-get install chromium")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Page, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def open_page(host, *servers):
        (tmp_path / "page.html").write_text(PAGE % tuple(map(json.dumps, servers)))
        options = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
        options += [f"--user-data-dir={tmp_path / 'profile'}", "--virtual-time-budget=8000", "--timeout=8000"]
        options += ["--host-resolver-rules=MAP *.example 127.0.0.1", "--dump-dom"]
        url = f"http://{host}:{server.server_address[1]}/page.html"
        return subprocess.run([browser, *options, url], capture_output=True, text=True, timeout=60, check=True).stdout

    yield open_page
    server.shutdown()


@pytest.fixture(scope="module")
def model_server(tmp_path_factory):
    """An endpoint's own server as the local stack starts it: its port, and the function that reads its log."""
    folder = tmp_path_factory.mktemp("endpoint")
    port = free_port(socket.SOCK_STREAM)
    variables = {"SM_MODEL_DIR": str(write_tiny_model(folder)), "SAGEMAKER_BIND_TO_PORT": str(port)}
    command = [sys.executable, ROOT / "endpoint/server.py", "serve", "--host", "127.0.0.1"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, env=os.environ | variables | NO_PROXY, stdout=log, stderr=log)
    assert eventually(lambda: is_up(f"http://127.0.0.1:{port}/ping"), 30)
    yield port, lambda: [json.loads(line) for line in (folder / "log").read_text().splitlines() if line[0] == "{"]
    process.terminate()
    process.wait(30)


@pytest.mark.parametrize(
    ("page", "target"),
    [("evil.example", "127.0.0.1"), ("127.0.0.1", "127.0.0.1"), ("evil.example", "evil.example")],
    ids=["another site", "another port", "DNS rebinding"],
)
def test_a_web_page_changes_nothing_in_the_local_stack(emulator, client, visit, model_server, page, target):
    """https://www.w3.org/TR/fetch-metadata/ and https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv.html"""
    endpoint, requests = model_server
    before = len(requests())
    urls = [f"http://{target}:{port}" for port in (emulator.port, emulator.sagemaker_port, endpoint)]
    assert "<title>done</title>" in visit(page, *urls)
    answers = {(request["path"], request["status"]) for request in requests()[before:]}
    assert answers - {("/ping", 200)} == {("/ping", 403), ("/invocations", 403)}  # is_up's line can be late
    assert is_up(f"http://127.0.0.1:{endpoint}/ping")
    queues = client("sqs").list_queues().get("QueueUrls", [])
    assert [url for url in queues if "/by-" in url] == []
    assert [row["FunctionName"] for row in client("lambda").list_functions()["Functions"]] == []
    assert [bucket["Name"] for bucket in client("s3").list_buckets()["Buckets"] if bucket["Name"] == "by-put"] == []
    assert client("sqs").create_queue(QueueName="by-boto3")["QueueUrl"]
    client("sqs").delete_queue(QueueUrl=client("sqs").get_queue_url(QueueName="by-boto3")["QueueUrl"])
