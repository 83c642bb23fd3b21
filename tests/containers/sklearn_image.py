"""The `serve` command of SageMaker's scikit-learn image, run with the image's packages.

sagemaker-containers starts gunicorn with gevent workers and wraps the model's four functions in a Flask application.
Only the image's entry point is not published as a package: `application` replaces it, and `collections.Mapping`
replaces the image's patch for sagemaker-containers, which predates Python 3.10.

    python sklearn_image.py MODEL REQUESTS RESPONSES    # in namespaces of its own: see test_sklearn_image.py

starts the server as a user without privileges who can write only to /tmp, as a serverless endpoint may run it, sends
each file of the folder REQUESTS (the first line is its content type), and writes the responses
to the folder RESPONSES. RESPONSES/libraries lists the shared libraries that the workers loaded.
"""

import collections
import collections.abc
import ctypes
import fcntl
import functools
import http.client
import importlib
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

collections.Mapping = collections.abc.Mapping

from sagemaker_containers.beta.framework import env, server, transformer, worker  # noqa: E402

SECONDS_TO_START = 60
WITHOUT_PRIVILEGES = ["unshare", "--user", "--map-user=1000", "--map-group=1000"]
libc = ctypes.CDLL(None, use_errno=True)


@functools.cache
def flask_application():
    serving = env.ServingEnv()
    code = importlib.import_module(serving.module_name)  # server.start has installed it
    functions = transformer.Transformer(code.model_fn, code.input_fn, code.predict_fn, code.output_fn)
    functions.initialize()
    return worker.Worker(functions.transform, module_name=serving.module_name)


def application(environ, start_response):
    return flask_application()(environ, start_response)


def loopback_up():
    """Bring up the loopback interface, which is down in a new network namespace."""
    set_flags, up_and_running = 0x8914, 0x1 | 0x40
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as any_socket:
        fcntl.ioctl(any_socket, set_flags, struct.pack("16sH22x", b"lo", up_and_running))


def set_read_only(path, read_only, *, recursive=False):
    """Change a mount, or with `recursive` also those below it: mount_setattr(2)."""
    attributes = struct.pack("QQQQ", read_only, not read_only, 0, 0)  # MOUNT_ATTR_RDONLY is 1
    result = libc.syscall(442, -100, os.fsencode(path), 0x8000 * recursive, attributes, len(attributes))
    assert result == 0, os.strerror(ctypes.get_errno())


def make_read_only(model):
    """Leave only /tmp and /proc writable, and the model in /tmp read-only."""
    for path in ("/tmp", model):
        subprocess.run(["mount", "--bind", path, path], check=True)
    set_read_only("/", True, recursive=True)
    for path in ("/tmp", "/proc"):
        set_read_only(path, False)
    set_read_only(model, True)


def send(method, path, body=b"", content_type="application/octet-stream"):
    connection = http.client.HTTPConnection("127.0.0.1", int(os.environ["SAGEMAKER_BIND_TO_PORT"]), timeout=60)
    connection.request(method, path, body, {"Content-Type": content_type})
    response = connection.getresponse()
    return {
        "status": response.status,
        "content_type": response.headers["Content-Type"],
        "body": response.read().decode(),
    }


def wait_until_healthy(process):
    deadline = time.monotonic() + SECONDS_TO_START
    while process.poll() is None and time.monotonic() < deadline:
        try:
            if send("GET", "/ping")["status"] == 200:
                return
        except OSError:
            time.sleep(0.1)
    sys.exit("the server did not become healthy")


def libraries(pid):
    """The shared libraries mapped by a process and its children."""
    mapped = {line.split(maxsplit=5)[-1].strip() for line in Path(f"/proc/{pid}/maps").read_text().splitlines()}
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return {path for path in mapped if ".so" in path}.union(*map(libraries, children))


def main():
    model, requests, responses = map(Path, sys.argv[1:])
    loopback_up()
    make_read_only(model)
    server = [sys.executable, "-c", "import sklearn_image; sklearn_image.serve()"]
    process = subprocess.Popen([*WITHOUT_PRIVILEGES, *server])
    try:
        wait_until_healthy(process)
        for request in sorted(requests.iterdir()):
            content_type, _, body = request.read_bytes().partition(b"\n")
            response = send("POST", "/invocations", body, content_type.decode())
            (responses / request.name).write_text(json.dumps(response))
        (responses / "libraries").write_text("\n".join(sorted(libraries(process.pid))))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def serve():
    for path in (os.environ["SM_MODEL_DIR"], sys.prefix, "/var/tmp"):
        assert not os.access(path, os.W_OK), path
    assert os.getuid() == 1000
    server.start("sklearn_image:application")


if __name__ == "__main__":
    main()
