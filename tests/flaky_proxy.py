"""A proxy in front of a store that fails on purpose: some requests at random, or all for a while.

A failed request is answered with 503; half of them reach the store all the same, as when only
the answer is lost on its way.
"""

from __future__ import annotations

import http.client
import random
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple

_BUSY = b"<Error><Code>ServiceUnavailable</Code><Message>on purpose</Message></Error>"
_DENIED = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
_HOP_BY_HOP = {"connection", "expect", "keep-alive", "transfer-encoding"}


class Answer(NamedTuple):
    """An answer to a request."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes


class FlakyProxy:
    """Forwards HTTP requests from a port of 127.0.0.1 to another.

    Attributes
    ----------
    requests : Counter
        How many there were, by method; those that were refused a connection are not seen.
    sent : int
        Bytes of the store's own answers.
    faults : int
        How many were answered with 503.
    fraction : float
        Of the requests that are answered so.
    denied : str or None
        Requests with this in their method and path, "PUT /bucket/x", are answered with 403.
    """

    def __init__(self, upstream_port: int, fraction: float, seed: int) -> None:
        self.requests: Counter[str] = Counter()
        self.sent = 0
        self.faults = 0
        self.fraction = fraction
        self.denied: str | None = None
        self._upstream_port = upstream_port
        self._random = random.Random(seed)
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._server = self._listening(0)
        self.port: int = self._server.server_address[1]

    def refuse(self, seconds: float) -> None:
        """Refuse all connections for a while, and cut those that there are; return thereafter."""
        self.close()
        time.sleep(seconds)
        self._server = self._listening(self.port)

    def close(self) -> None:
        """Stop listening and cut all connections."""
        self._server.shutdown()
        self._server.server_close()
        with self._lock:
            for connection in self._open:
                _cut(connection)

    def answer(self, request: BaseHTTPRequestHandler) -> Answer:
        """Answer a request, from the store or instead of it."""
        body = _body(request)
        with self._lock:
            self.requests[request.command] += 1
            fails = self._random.random() < self.fraction
            reaches = self._random.random() < 0.5
            self.faults += fails
        if self.denied is not None and self.denied in f"{request.command} {request.path}":
            return _error(403, _DENIED)
        if fails and not reaches:
            return _error(503, _BUSY)
        answer = self._forwarded(request, body)
        with self._lock:
            self.sent += len(answer.body)
        return _error(503, _BUSY) if fails else answer

    def _forwarded(self, request: BaseHTTPRequestHandler, body: bytes) -> Answer:
        upstream = http.client.HTTPConnection("127.0.0.1", self._upstream_port, timeout=60)
        try:
            upstream.putrequest(
                request.command, request.path, skip_host=True, skip_accept_encoding=True
            )
            for name, value in request.headers.items():
                if name.lower() not in _HOP_BY_HOP | {"content-length"}:
                    upstream.putheader(name, value)
            upstream.putheader("Content-Length", str(len(body)))
            upstream.endheaders(body)
            answer = upstream.getresponse()
            headers = [(n, v) for n, v in answer.getheaders() if n.lower() not in _HOP_BY_HOP]
            return Answer(answer.status, headers, answer.read())
        finally:
            upstream.close()

    def _listening(self, port: int) -> ThreadingHTTPServer:
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def setup(self) -> None:
                super().setup()
                with proxy._lock:
                    proxy._open.add(self.request)

            def finish(self) -> None:
                with proxy._lock:
                    proxy._open.discard(self.request)
                super().finish()

            def log_message(self, *_: Any) -> None:
                """Say nothing."""

        def handle(self: BaseHTTPRequestHandler) -> None:
            _send(self, proxy.answer(self))

        for method in ("GET", "HEAD", "PUT", "POST", "DELETE"):
            setattr(Handler, f"do_{method}", handle)
        server = _Server(("127.0.0.1", port), Handler)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return server


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 128

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A connection that was cut is none."""


@contextmanager
def flaky_proxy(upstream_port: int, fraction: float, seed: int = 0) -> Iterator[FlakyProxy]:
    """A proxy for as long as the block lasts."""
    proxy = FlakyProxy(upstream_port, fraction, seed)
    try:
        yield proxy
    finally:
        proxy.close()


def _body(request: BaseHTTPRequestHandler) -> bytes:
    if request.headers.get("Transfer-Encoding", "").lower() != "chunked":
        return request.rfile.read(int(request.headers.get("Content-Length") or 0))
    chunks = []
    while size := int(request.rfile.readline().split(b";")[0], 16):
        chunks.append(request.rfile.read(size))
        request.rfile.readline()
    while request.rfile.readline().strip():
        pass  # trailers
    return b"".join(chunks)


def _send(request: BaseHTTPRequestHandler, answer: Answer) -> None:
    request.send_response_only(answer.status)
    for name, value in answer.headers:
        request.send_header(name, value)
    if not any(name.lower() == "content-length" for name, _ in answer.headers):
        request.send_header("Content-Length", str(len(answer.body)))
    request.end_headers()
    if request.command != "HEAD":
        request.wfile.write(answer.body)


def _error(status: int, body: bytes) -> Answer:
    return Answer(status, [("Content-Type", "application/xml")], body)


def _cut(connection: socket.socket) -> None:
    # it may have ended by itself
    with suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
