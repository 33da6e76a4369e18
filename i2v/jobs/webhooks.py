"""Tells an address of the caller's choice that a job has ended: signed, retried, remembered over restarts.

Each address has a line of its own, in the order in which jobs ended, and one call at a time. A call that is tried again
later does not hold up those behind it.

The signature is that of Standard Webhooks, which OpenAI's clients verify. Addresses inside this network are refused
unless the operator allows them: otherwise strangers could reach other machines here through this server.
"""

import asyncio
import base64
import hashlib
import hmac
import ipaddress
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import SplitResult, urlsplit
from weakref import WeakValueDictionary

import httpx
from anyio import to_thread

from i2v.errors import I2VError, InvalidRequest
from i2v.jobs.job import Job, PendingWebhook
from i2v.settings import Settings, webhook_key

if TYPE_CHECKING:
    from i2v.jobs.queue import JobQueue

log = logging.getLogger("i2v.server")

BACK_OFF_S = (1.0, 5.0, 30.0, 120.0, 600.0, 3600.0)
CALLS = 32  # at the same time, one for each address: a slow one takes no place from others
CONNECT_S = 10.0
LOOK_AGAIN_S = 60.0  # how often the table is asked in any case: an earlier look may have failed
TOTAL_S = 20.0  # for the whole call, also where the answer comes byte by byte


class Refused(Exception):
    """The address must not be called; trying again would not help."""


class Webhooks:
    """Delivers on an event loop of its own, in a thread that does not keep the process from ending.

    `finished` is quick and thread-safe; tests inject `back_off` and `look_again_s`.
    """

    def __init__(
        self,
        settings: Settings,
        queue: "JobQueue",
        *,
        back_off: Sequence[float] = BACK_OFF_S,
        look_again_s: float = LOOK_AGAIN_S,
    ) -> None:
        self._queue = queue
        self._secret = settings.webhook_secret.get_secret_value() if settings.webhook_secret else None
        self._private = settings.webhook_allow_private
        self._back_off = back_off
        self._look_again_s = look_again_s
        self._stopping = False
        self._loop: asyncio.AbstractEventLoop | None = None
        # What follows belongs to that loop.
        self._changed = asyncio.Event()
        self._calls = asyncio.Semaphore(CALLS)
        self._lines: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()  # by address; a lock is a fair line
        self._telling: dict[str, asyncio.Task[None]] = {}  # by job

    def start(self) -> None:
        """Begin to deliver, with what an earlier process left. Without a secret there is nothing to do."""
        if self._secret is not None:
            threading.Thread(target=lambda: asyncio.run(self._run()), name="i2v-webhooks", daemon=True).start()

    def stop(self) -> None:
        """End the thread; what is not delivered stays remembered. Does not wait for an address that is being called."""
        self._stopping = True
        self._wake()

    def finished(self, _job: Job) -> None:
        """Called by the queue for each job that has ended: its address, stored with it, is told soon."""
        self._wake()

    def check(self, url: str | None) -> None:
        """Refuse an address at the door: `InvalidRequest` naming `webhook`."""
        if url is None:
            return
        if self._secret is None:
            raise InvalidRequest(
                "webhooks are off on this server: it has no webhook_secret to sign with", field="webhook"
            )
        try:
            host = _split(url).hostname or ""
            if not self._private and (host.lower() == "localhost" or _is_inside(host)):
                raise Refused("it lies inside this network")
        except Refused as error:
            raise InvalidRequest(f"webhook is not taken: {error}", field="webhook") from None

    def _wake(self) -> None:
        """Have the table asked soon. A loop that has not begun yet asks it anyway."""
        if self._loop is not None:
            with suppress(RuntimeError):  # it has ended
                self._loop.call_soon_threadsafe(self._changed.set)

    async def _run(self) -> None:
        self._loop = asyncio.get_running_loop()
        while not self._stopping:
            self._changed.clear()
            await self._collect()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._changed.wait(), self._look_again_s)

    async def _collect(self) -> None:
        """Take up what is pending. A table that cannot be asked now is asked again later."""
        known = set(self._telling)  # before the table is asked: what is told meanwhile may be in its answer
        try:
            found = await to_thread.run_sync(self._queue.pending_webhooks)
        except I2VError as error:
            log.warning("webhooks are looked for again in %.0f s: %s", self._look_again_s, error.message)
            return
        for pending in found:
            if pending.job_id not in known:
                self._telling[pending.job_id] = asyncio.create_task(self._tell(pending))

    async def _tell(self, pending: PendingWebhook) -> None:
        """Call until the address takes it or is given up, then forget it."""
        attempts, who = len(self._back_off) + 1, {"job": pending.job_id}
        try:
            for pause in (0.0, *self._back_off):
                await asyncio.sleep(pause)
                if (problem := await self._call(pending)) is None:
                    break
            else:
                log.warning("webhook given up after %d attempts: %s", attempts, problem, extra=who)
        except Refused as error:
            log.warning("webhook given up: %s", error, extra=who)
        await self._forget(pending.job_id)
        del self._telling[pending.job_id]

    async def _call(self, pending: PendingWebhook) -> str | None:
        """One attempt, once those that came before to the same address are through. Returns what went wrong.

        Raises `Refused`.
        """
        line = self._lines.setdefault(_address_of(pending.url), asyncio.Lock())
        try:
            async with line, self._calls:
                status = await post(pending.url, event_of(pending), self._signed(pending), allow_private=self._private)
        except (OSError, httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            return type(error).__name__
        return None if 200 <= status < 300 else f"it answered {status}"

    def _signed(self, pending: PendingWebhook) -> dict[str, str]:
        message_id, now = message_id_of(pending), str(int(time.time()))
        signature = sign(self._secret or "", message_id, now, event_of(pending))
        return {"webhook-id": message_id, "webhook-timestamp": now, "webhook-signature": signature}

    async def _forget(self, job_id: str) -> None:
        """Try until the table takes it; until then the address is not told again."""
        while True:
            try:
                await to_thread.run_sync(self._queue.forget_webhook, job_id)
                return
            except I2VError as error:
                log.warning("webhook stays in the table for now: %s", error.message, extra={"job": job_id})
            await asyncio.sleep(self._look_again_s)


def message_id_of(pending: PendingWebhook) -> str:
    """The same at every attempt, so that a receiver can ignore repeats."""
    return "evt_" + hashlib.sha256(f"{pending.job_id} {pending.status}".encode()).hexdigest()[:24]


def event_of(pending: PendingWebhook) -> bytes:
    """The body: which job ended and how."""
    kind = {"completed": "video.completed", "cancelled": "video.cancelled"}.get(pending.status, "video.failed")
    created = int(pending.ended_at.timestamp())
    event = {"id": message_id_of(pending), "object": "event", "created_at": created, "type": kind}
    return json.dumps(event | {"data": {"id": pending.job_id}}, separators=(",", ":")).encode("ascii")


def sign(secret: str, message_id: str, timestamp: str, body: bytes) -> str:
    """Standard Webhooks: `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`."""
    digest = hmac.new(webhook_key(secret), f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode("ascii")


async def post(url: str, body: bytes, headers: dict[str, str], *, allow_private: bool, total_s: float = TOTAL_S) -> int:
    """POST JSON and return the status; follows no redirect and uses no proxy. Takes at most `total_s` seconds.

    The name is resolved once and the connection made to that very address, so that a name cannot point elsewhere
    between the check and the call. The certificate is still the name's. Raises `Refused`, OSError, ValueError,
    `httpx.HTTPError` and `httpx.InvalidURL`.
    """
    parts = _split(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    headers = {**headers, "Host": parts.netloc, "Content-Type": "application/json", "User-Agent": "i2v"}
    async with asyncio.timeout(total_s):
        address = await _address(host, port, allow_private)
        pinned = httpx.URL(scheme=parts.scheme, host=address, port=port, raw_path=path.encode("ascii"))
        # A client for each call: a connection that is used again would have the certificate of another name.
        async with (
            httpx.AsyncClient(verify=ssl.create_default_context(), trust_env=False, timeout=CONNECT_S) as client,
            client.stream("POST", pinned, content=body, headers=headers, extensions={"sni_hostname": host}) as answer,
        ):
            return answer.status_code


def _address_of(url: str) -> str:
    """Host and port: what is called, whatever the path."""
    with suppress(ValueError):
        parts = urlsplit(url)
        return f"{parts.scheme}://{parts.hostname}:{parts.port}"
    return url


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise Refused("it is not a valid address") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise Refused("it must be an http or https address without a password")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise Refused("it is not a valid address")
    return parts


async def _address(host: str, port: int, allow_private: bool) -> str:
    """The address to call. All addresses of a name must lie outside, or none is taken."""
    resolve = partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
    found = [str(info[4][0]) for info in await to_thread.run_sync(resolve, abandon_on_cancel=True)]
    if not allow_private and any(_is_inside(address) for address in found):
        raise Refused("its name points inside this network")
    return found[0]


def _is_inside(host: str) -> bool:
    """Whether an IP literal is anything but a public address; a name is not (it is looked at once it is resolved)."""
    try:
        address = ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    if not address.is_global or address.is_multicast:
        return True
    # The rest of IPv6 is local, or wraps an IPv4 address that could be anything.
    return isinstance(address, ipaddress.IPv6Address) and (
        address not in _PUBLIC_V6 or address.sixtofour is not None or address.teredo is not None
    )


_PUBLIC_V6 = ipaddress.ip_network("2000::/3")
