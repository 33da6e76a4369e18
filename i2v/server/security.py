"""Who may ask: pure ASGI layers around every route and around the mounted web page alike.

Three checks look at a request's head, in this order: its Host (DNS rebinding), its origin (foreign pages), its token.
What follows the head is counted in `body_limit.py`. They know paths and headers, nothing of jobs.
"""

import base64
import binascii
import hmac
import ipaddress
from functools import lru_cache
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from i2v.errors import BadRequest, Forbidden, I2VError, Unauthorized
from i2v.server.answers import error_answer
from i2v.server.clients import PROBES, WrongTokens, client_of
from i2v.settings import Settings

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
MAX_HEADERS = 200
MAX_HEAD = 64_000  # bytes; the parser's own limit does not hold for a head that arrives in one piece


class HeadGuard:
    """Refuses a request by its head alone, before a byte of its body is read."""

    def __init__(self, app: ASGIApp, *, settings: Settings) -> None:
        self.app = app
        self.hosts = _allowed_names(settings)
        self.origins = {urlsplit(settings.public_url).netloc.lower()} if settings.public_url else set()
        self.wrong_tokens = WrongTokens()
        self.token = settings.api_token.get_secret_value().encode() if settings.api_token else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            check_size(scope)
            check_host(headers, self.hosts)
            if scope["method"] not in SAFE_METHODS:
                check_origin(headers, self.origins)
            if self.token is not None and scope["path"] not in PROBES:
                check_token(headers, self.token)
        except Unauthorized as error:
            if "authorization" in headers:
                await self.wrong_tokens.noted(client_of(scope))
            await error_answer(error, scope["path"], _challenge(headers))(scope, receive, send)
        except I2VError as error:
            await error_answer(error, scope["path"])(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def check_size(scope: Scope) -> None:
    """Raises `BadRequest` for too long an address and headers; no client needs more than a few kilobytes."""
    headers, target = scope["headers"], len(scope.get("raw_path") or b"") + len(scope["query_string"])
    if len(headers) > MAX_HEADERS or target + sum(len(name) + len(value) for name, value in headers) > MAX_HEAD:
        raise BadRequest(f"the address and the headers are too long; at most {MAX_HEADERS} headers, {MAX_HEAD} bytes")


def check_host(headers: Headers, allowed: frozenset[str]) -> None:
    """Raises `Forbidden` for a Host that is no loopback name, IP literal or configured name; HTTP/1.0 may send none.

    A page of another site whose name was made to resolve to this machine sends its own name, and is refused.
    """
    host = headers.get("host")
    if host is None:
        return
    name = _name_of(host)
    if name not in allowed and not _is_ip(name):
        raise Forbidden("this Host is not served here; add its name to the setting allowed_hosts")


def check_origin(headers: Headers, own: set[str]) -> None:
    """Raises `Forbidden` for a page of another site. A browser says where a request comes from; programs do not, and
    pass.

    `Sec-Fetch-Site` cannot be set by a page. Browsers leave it out on plain-http addresses, where `Origin` decides.
    """
    site = headers.get("sec-fetch-site")
    if site is not None:
        if site.strip().lower() not in ("same-origin", "none"):
            raise Forbidden("requests from pages of other sites are refused")
        return
    origin = headers.get("origin")
    if origin is None:
        return
    netloc = _netloc(origin)
    if not netloc or netloc not in own | {headers.get("host", "").lower()}:
        raise Forbidden("requests from pages of other sites are refused")


def _netloc(origin: str) -> str:
    """Host and port of an origin; empty for `null` and for what is no address."""
    try:
        return urlsplit(origin).netloc.lower() if origin.isascii() else ""
    except ValueError:  # brackets that hold no IPv6 address
        return ""


def check_token(headers: Headers, token: bytes) -> None:
    """Takes `Authorization: Bearer TOKEN`, or `Basic` with the token as password, as a browser logs in.

    Raises `Unauthorized` for anything else.
    """
    given = _given_token(headers.get("authorization", ""))
    if not hmac.compare_digest(given, token):
        raise Unauthorized("this server needs a valid token: Authorization: Bearer TOKEN")


def _given_token(authorization: str) -> bytes:
    scheme, _, value = authorization.partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return value.encode("latin-1", "replace")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


def _challenge(headers: Headers) -> dict[str, str]:
    """Browsers opening a page are asked to log in (any user name, the token as password); programs are not."""
    scheme = "Basic" if "text/html" in headers.get("accept", "") else "Bearer"
    return {"WWW-Authenticate": f'{scheme} realm="i2v"'}


def _allowed_names(settings: Settings) -> frozenset[str]:
    names = {"localhost", *(name.lower() for name in settings.allowed_hosts)}
    if settings.public_url:
        names.add(_name_of(urlsplit(settings.public_url).netloc))
    return frozenset(names)


def _name_of(host: str) -> str:
    """The host name without port and brackets, in lower case."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0].rstrip(".")


@lru_cache(maxsize=64)
def _is_ip(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
