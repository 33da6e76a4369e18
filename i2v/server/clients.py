"""Who counts as one client, for shares of what the server has: of connections, of bytes, of attempts to log in."""

import ipaddress
from functools import lru_cache

from starlette.types import Scope

NETWORK = 64  # bits of an IPv6 address that one customer is given; the rest is free to choose


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
