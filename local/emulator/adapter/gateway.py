"""The emulator's port, and the Runtime API of its functions.

Both are closed to web pages of another origin (browsers.py). The port closes a connection when its client has.
"""

import http.server

import ministack.app
from hypercorn.asyncio.tcp_server import TCPServer

from local.emulator import browsers

ministack.app.app = browsers.guarded(ministack.app.app)
# ministack defines the Runtime API's handlers inside functions, so their base class is replaced.
http.server.BaseHTTPRequestHandler = browsers.Guarded  # type: ignore[misc]

read_data = TCPServer._read_data


async def read_data_and_stop(server: TCPServer) -> None:
    """Read until the client closes the connection, and then do not wait for the keep-alive timeout of 75 seconds.

    Otherwise a few hundred uploads use up the descriptors that a process can have.
    """
    await read_data(server)
    await server.idle_task.stop()


TCPServer._read_data = read_data_and_stop
