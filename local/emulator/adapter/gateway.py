"""The emulator's port and the Runtime API of its functions: closed to web pages of another origin (browsers.py)."""

import http.server

import ministack.app

from local.emulator import browsers

ministack.app.app = browsers.guarded(ministack.app.app)
# ministack defines the Runtime API's handlers inside functions, so their base class is replaced.
http.server.BaseHTTPRequestHandler = browsers.Guarded  # type: ignore[misc]
