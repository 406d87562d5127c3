"""A program on a port on which people expect one of the servers: whatever it is asked, it answers with the same."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ANSWERS = {
    "broken JSON": (200, "application/json", b'{"experiments": ['),
    "other JSON": (200, "application/json", b'{"experiments": 7, "runs": {"a": 1}}'),
    "a list": (200, "application/json", b"[1, 2]"),
    "a page": (200, "text/html", b"<!DOCTYPE html><html>Router</html>"),
    "nothing": (200, "application/json", b""),
    "not found": (404, "text/plain", b"404 page not found"),
    "an error": (500, "application/json", b'{"error": 7}'),
}
"""By a name: the status, the type and the body."""


@contextmanager
def hijacked_port(answer: str) -> Iterator[str]:
    """The address of such a program."""
    status, kind, body = ANSWERS[answer]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_PUT = do_PATCH = do_DELETE = do_GET

        def log_message(self, format: str, *args: object) -> None:
            """Keep the test's output clean."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
