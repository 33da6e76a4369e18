"""Tells an address of the caller's choice that a job has ended: signed, retried, remembered over restarts.

The signature is that of Standard Webhooks, which OpenAI's clients verify. Addresses inside this network are refused
unless the operator allows them, because the server would otherwise knock on its neighbours' doors for strangers.
"""

import base64
import binascii
import hashlib
import heapq
import hmac
import http.client
import ipaddress
import json
import logging
import socket
import ssl
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from urllib.parse import SplitResult, urlsplit

from i2v.errors import I2VError, InvalidRequest
from i2v.jobs.job import Job
from i2v.jobs.queue import JobQueue
from i2v.jobs.store import Owed
from i2v.settings import Settings

log = logging.getLogger("i2v.server")

BACK_OFF_S = (1.0, 5.0, 30.0, 120.0, 600.0, 3600.0)
CONNECT_S = 10.0
LOOK_AGAIN_S = 60.0  # how often the table is asked in any case: an earlier look may have failed
TOTAL_S = 20.0  # an address that drips its answer is cut off


class Refused(Exception):
    """The address must not be called; trying again would not help."""


@dataclass(order=True, slots=True)
class _Delivery:
    due: float
    job_id: str = field(compare=False)
    url: str = field(compare=False)
    body: bytes = field(compare=False)
    attempt: int = field(default=0, compare=False)


class Webhooks:
    """One thread that delivers. `finished` is quick and thread-safe; tests inject `back_off` and `look_again_s`."""

    def __init__(
        self,
        settings: Settings,
        queue: JobQueue,
        *,
        back_off: Sequence[float] = BACK_OFF_S,
        look_again_s: float = LOOK_AGAIN_S,
    ) -> None:
        self._queue = queue
        self._secret = settings.webhook_secret.get_secret_value() if settings.webhook_secret else None
        self._allow_private = settings.webhook_allow_private
        self._back_off = back_off
        self._look_again_s = look_again_s
        self._changed = threading.Condition()
        self._stopping = False
        self._ended = True  # there may be an end to tell; what an earlier process left is looked for at once
        self._thread: threading.Thread | None = None
        # What follows is the thread's own.
        self._look_at = 0.0
        self._due: list[_Delivery] = []
        self._taken: set[str] = set()  # jobs in `_due` or `_told`
        self._told: set[str] = set()  # done with, but the table has not taken it yet

    def start(self) -> None:
        """Begin to deliver, with what an earlier process left. Without a secret there is nothing to do."""
        if self._secret is None:
            return
        self._thread = threading.Thread(target=self._run, name="i2v-webhooks", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread; what is not delivered stays remembered. Does not wait for an address that is being called."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

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
            if not self._allow_private and (host.lower() == "localhost" or _is_inside(host)):
                raise Refused("it lies inside this network")
        except Refused as error:
            raise InvalidRequest(f"webhook is not taken: {error}", field="webhook") from None

    def finished(self, _job: Job) -> None:
        """Called by the queue for each job that has ended: its address, stored with it, is told soon."""
        with self._changed:
            self._ended = True
            self._changed.notify()

    def _run(self) -> None:
        while (delivery := self._next()) is not None:
            self._deliver(delivery)

    def _next(self) -> _Delivery | None:
        """The next delivery once it is due; None when the server stops."""
        while True:
            with self._changed:
                now = time.monotonic()
                due = self._due[0].due if self._due else self._look_at
                if self._stopping:
                    return None
                look = self._ended or self._look_at <= now
                self._ended = False
                if not look:
                    if self._due and due <= now:
                        return heapq.heappop(self._due)
                    self._changed.wait(min(due, self._look_at) - now)
            if look:
                self._collect()

    def _collect(self) -> None:
        """Take up what is owed. A table that cannot be asked now is asked again, as it is now and then in any case."""
        self._look_at = time.monotonic() + self._look_again_s
        for job_id in list(self._told):
            self._forget(job_id)
        try:
            found = self._queue.owed_webhooks()
        except I2VError as error:
            log.warning("webhooks are looked for again in %.0f s: %s", self._look_again_s, error.message)
            return
        for one in found:
            if one.job_id not in self._taken:
                self._taken.add(one.job_id)
                heapq.heappush(self._due, _Delivery(time.monotonic(), one.job_id, one.url, event_of(one)))

    def _forget(self, job_id: str) -> None:
        """It has been told, or given up. A table that takes no change now gets it later; until then nothing is told."""
        try:
            self._queue.forget_webhook(job_id)
        except I2VError as error:
            log.warning("webhook stays in the table for now: %s", error.message, extra={"job": job_id})
            self._told.add(job_id)
            return
        self._told.discard(job_id)
        self._taken.discard(job_id)

    def _deliver(self, delivery: _Delivery) -> None:
        try:
            status = post(delivery.url, delivery.body, self._signed(delivery), allow_private=self._allow_private)
            done, why = 200 <= status < 300, f"it answered {status}"
        except Refused as error:
            log.warning("webhook given up: %s", error, extra={"job": delivery.job_id})
            self._forget(delivery.job_id)
            return
        except (OSError, http.client.HTTPException, ValueError) as error:
            done, why = False, type(error).__name__
        if done:
            self._forget(delivery.job_id)
        elif delivery.attempt < len(self._back_off):
            delivery.due = time.monotonic() + self._back_off[delivery.attempt]
            delivery.attempt += 1
            heapq.heappush(self._due, delivery)
        else:
            log.warning(
                "webhook given up after %d attempts: %s", delivery.attempt + 1, why, extra={"job": delivery.job_id}
            )
            self._forget(delivery.job_id)

    def _signed(self, delivery: _Delivery) -> dict[str, str]:
        message_id, now = json.loads(delivery.body)["id"], str(int(time.time()))
        signature = sign(self._secret or "", message_id, now, delivery.body)
        return {"webhook-id": message_id, "webhook-timestamp": now, "webhook-signature": signature}


def event_of(owed: Owed) -> bytes:
    """The body: which job ended and how; its id is the same at every attempt, so that a receiver can ignore repeats."""
    kind = {"completed": "video.completed", "cancelled": "video.cancelled"}.get(owed.status, "video.failed")
    message_id = "evt_" + hashlib.sha256(f"{owed.job_id} {owed.status}".encode()).hexdigest()[:24]
    event = {"id": message_id, "object": "event", "created_at": int(owed.ended_at.timestamp()), "type": kind}
    return json.dumps(event | {"data": {"id": owed.job_id}}, separators=(",", ":")).encode("ascii")


def sign(secret: str, message_id: str, timestamp: str, body: bytes) -> str:
    """Standard Webhooks: `v1,` and the base64 of HMAC-SHA256 over `id.timestamp.body`; `whsec_` secrets are base64."""
    key = secret.encode()
    if secret.startswith("whsec_"):
        with suppress(binascii.Error):
            key = base64.b64decode(secret.removeprefix("whsec_"))
    digest = hmac.new(key, f"{message_id}.{timestamp}.".encode() + body, hashlib.sha256).digest()
    return "v1," + base64.b64encode(digest).decode("ascii")


def post(url: str, body: bytes, headers: dict[str, str], *, allow_private: bool, total_s: float = TOTAL_S) -> int:
    """POST JSON and return the status; follows no redirect. Raises `Refused`, OSError, ValueError or HTTPException.

    The name is resolved once and the connection made to that very address, so that a name cannot point elsewhere
    between the check and the call.
    """
    parts = _split(url)
    host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    connection = http.client.HTTPConnection(host, port, timeout=CONNECT_S)
    raw = socket.create_connection((_address(host, port, allow_private), port), CONNECT_S)
    connection.sock = raw
    limit = threading.Timer(total_s, _cut, (connection,))
    limit.daemon = True
    limit.start()
    try:
        if parts.scheme == "https":  # the shake follows, so that the limit holds for it too
            tls = ssl.create_default_context()
            connection.sock = tls.wrap_socket(raw, server_hostname=host, do_handshake_on_connect=False)
            connection.sock.do_handshake()
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", target, body, {**headers, "Content-Type": "application/json", "User-Agent": "i2v"})
        return connection.getresponse().status
    finally:
        limit.cancel()
        connection.close()
        raw.close()


def _cut(connection: http.client.HTTPConnection) -> None:
    """End the connection under the thread that waits for it. TLS takes the socket over, so it is looked up now."""
    if connection.sock is not None:
        with suppress(OSError):
            socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError:
        raise Refused("it is not a valid address") from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username is not None:
        raise Refused("an http or https address without a password is wanted")
    if not url.isascii() or not url.isprintable() or " " in url:
        raise Refused("it is not a valid address")
    return parts


def _address(host: str, port: int, allow_private: bool) -> str:
    """The address to call. All addresses of a name must lie outside, or none is taken."""
    found = [str(info[4][0]) for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
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
