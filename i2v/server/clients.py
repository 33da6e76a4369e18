"""Who counts as one client, for shares of what the server has: of connections, of bytes, of attempts to log in."""

import ipaddress
from collections import Counter
from functools import lru_cache

from starlette.types import ASGIApp, Receive, Scope, Send

from i2v.errors import NotReady
from i2v.server.answers import error_answer

NETWORK = 64  # bits of an IPv6 address that one customer is given; the rest is free to choose
PROBES = frozenset({"/livez", "/readyz"})  # they answer whoever else holds the server
LEAST_SHARE = 16  # requests that one client may have going on, however few the places are


class RequestShare:
    """One client holds at most half of `places` with requests that are being answered: streams, waiting calls, bodies
    that drip. What holds a place without a request (silence, kept connections) gives way in `protocol.py`.
    """

    def __init__(self, app: ASGIApp, *, places: int) -> None:
        self.app = app
        self.share = max(LEAST_SHARE, places // 2)
        self.going_on: Counter[str] = Counter()  # requests by client; nobody who has none is in it

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in PROBES:
            await self.app(scope, receive, send)
            return
        client = client_of(scope)
        if self.going_on[client] >= self.share:
            error = NotReady(f"this address has {self.share} requests going on, which is its share", retry_after=5)
            await error_answer(error, scope["path"], {"Connection": "close"})(scope, receive, send)
            return
        self.going_on[client] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.going_on[client] -= 1
            if not self.going_on[client]:
                del self.going_on[client]


def client_of(scope: Scope) -> str:
    """The client's address; of an IPv6 address its network. Behind a proxy (`public_url`) the one that it names:
    uvicorn has put it into the scope then, the last one in `X-Forwarded-For` that is no proxy's own, which no client
    can choose.
    """
    client = scope.get("client")
    return _counted(client[0]) if client else ""


@lru_cache(maxsize=1024)
def _counted(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, NETWORK), strict=False))
