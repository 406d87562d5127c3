"""The check of the host that a request is for.

A web page can have its own name resolve to 127.0.0.1 (DNS rebinding). To a browser, the service is then a part of that
page, whose scripts may call it and read its answers. The header `Host` still holds the page's name, so requests for
names that are not the service's own are refused. Nobody can have an address in digits resolve to another one.
"""

import socket
from collections.abc import Collection
from http import HTTPStatus
from ipaddress import ip_address

from fastapi import Response
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from lifecycle.serving.requests import encode_json, shorten_value

ANY_HOST = "*"


class HostCheck:
    """ASGI middleware that refuses requests for a host that is neither an address in digits nor this service."""

    def __init__(self, app: ASGIApp, names: Collection[str]) -> None:
        """
        Args:
            names: of this service, beside those of this machine; `ANY_HOST`: all names are.
        """
        self.app = app
        self.names = {"localhost", socket.gethostname().lower(), *(name.lower() for name in names)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        host = Headers(scope=scope).get("host", "") if scope["type"] == "http" else ""
        if self._is_own(host):
            await self.app(scope, receive, send)
            return
        reason = f"this service is not {shorten_value(host)}; if it should be, start it with --allowed-host"
        refusal = Response(
            encode_json({"detail": reason}), HTTPStatus.MISDIRECTED_REQUEST, media_type="application/json"
        )
        await refusal(scope, receive, send)

    def _is_own(self, host: str) -> bool:
        """Whether a header names this service. Clients other than browsers may leave it out."""
        name, _, port = host.rpartition(":")
        name = (name if port.isdecimal() else host).lower().rstrip(".")
        return not host or ANY_HOST in self.names or name in self.names or _is_address(name.strip("[]"))


def _is_address(name: str) -> bool:
    try:
        ip_address(name)
    except ValueError:
        return False
    return True
