"""Who counts as one client, for shares of what the server has: of connections, of bytes, of attempts to log in."""

import asyncio
import ipaddress
import logging
from collections import Counter
from functools import lru_cache

from starlette.types import ASGIApp, Receive, Scope, Send

from i2v.errors import NotReady
from i2v.server.answers import error_answer

log = logging.getLogger("i2v.server")

NETWORK = 64  # bits of an IPv6 address that one customer is given; the rest is free to choose
PROBES = frozenset({"/livez", "/readyz"})  # they answer whoever else holds the server
FREE_TRIES = 10  # wrong tokens of one client in a minute, before it has to wait for each answer
WAIT_S = 0.2
WAIT_AT_ONCE = 32  # beyond these nobody waits: places are for others
MINUTE_S = 60.0
KNOWN_CLIENTS = 1000  # counted apart; all further ones together
OTHERS = "other addresses"
NAMED_CLIENTS = 10  # in a line of the log
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


class WrongTokens:
    """Counts wrong tokens by client, says so once a minute, and has those wait who send many.

    A line at the first one, then the counts a minute later. What is remembered is bounded, and so is who waits.
    """

    def __init__(self) -> None:
        self._counts: Counter[str] = Counter()
        self._waiting = 0

    async def noted(self, client: str) -> None:
        """A wrong token came. Returns at once for the first `FREE_TRIES` in a minute, later for more."""
        if not self._counts:
            log.warning("a wrong token came from %s", client)
            asyncio.get_running_loop().call_later(MINUTE_S, self.report)
        name = client if client in self._counts or len(self._counts) < KNOWN_CLIENTS else OTHERS
        self._counts[name] += 1
        if self._counts[name] > FREE_TRIES and self._waiting < WAIT_AT_ONCE:
            self._waiting += 1
            try:
                await asyncio.sleep(WAIT_S)
            finally:
                self._waiting -= 1

    def report(self) -> None:
        """The counts of the last minute, of those who sent the most; they begin anew."""
        counts, self._counts = self._counts, Counter()
        if counts.total() > 1:
            most = ", ".join(f"{count} from {client}" for client, count in counts.most_common(NAMED_CLIENTS))
            log.warning("%d wrong tokens in a minute: %s", counts.total(), most)


def client_of(scope: Scope) -> str:
    """The client's address; of an IPv6 address its network. Behind a proxy (`public_url`) the one that it names:
    uvicorn has put it into the scope then, the last one in `X-Forwarded-For` that is no proxy's own, which no client
    can choose.
    """
    client = scope.get("client")
    return client_at(client[0]) if client else ""


@lru_cache(maxsize=1024)
def client_at(address: str) -> str:
    """The name under which the client with this address is counted."""
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv4Address):
        return address
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, NETWORK), strict=False))
