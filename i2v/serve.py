"""The composition of a server: settings -> queue -> engine, loaded in a thread -> app -> web page -> uvicorn.

The port opens before the model is loaded, so that `/livez` and `/readyz` answer meanwhile. The only place that
knows all the parts; called by `i2v serve` and by `server.py`.
"""

import gc
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI

from i2v import ffmpeg
from i2v.errors import EXIT_RESTART, FatalEngineError
from i2v.jobs.queue import JobQueue
from i2v.jobs.schema import DataError
from i2v.loading import introduce, load_engine, mutex_for
from i2v.server.app import create_app
from i2v.server.listener import Listener, places_within_limit
from i2v.server.logs import configure_logging
from i2v.server.protocol import bounded_protocol
from i2v.settings import Settings

log = logging.getLogger("i2v.serve")

EXIT_FAILED = 1
GRACE_S = 5  # how long open streams and downloads may go on after a signal
EXIT_BY_FORCE_S = 90.0
SHORT_TOKEN = 16
# Python's own 5 ms is how long the engine's thread may wait for the interpreter at each operation beside a busy route.
SWITCH_S = 0.0005
_LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})


def serve(settings: Settings) -> int:
    """Run until a signal comes or the engine is lost. Returns the exit code: 0, 1, or 86 for "start me again"."""
    configure_logging(settings.log_level, as_json=settings.log_json)
    sys.setswitchinterval(SWITCH_S)
    settings = settings.model_copy(update={"max_connections": places_within_limit(settings.max_connections)})
    if settings.ui:
        from i2v.ui.mount.uploads import take_folder

        try:
            take_folder()
        except OSError as error:
            log.error("the web page cannot keep photos: %s; set TMPDIR to a folder that can be written", error)
            return EXIT_FAILED
    queue = JobQueue(settings)
    try:
        listener = _listen(settings)
        queue.start()
    except OSError as error:
        log.error("cannot listen on %s port %d: %s", settings.host, settings.port, error.strerror or error)
        return EXIT_FAILED
    except DataError as error:
        log.error("%s", error)
        return EXIT_FAILED
    app = create_app(settings, queue, start_queue=False)
    if settings.ui:
        from i2v.ui.mount.mounting import mount_ui  # gradio takes seconds to import, and `--no-ui` does without

        app = mount_ui(app, settings, queue)
    server = Server(settings, app, _address(settings, listener))
    server.once_listening = partial(_load, settings, queue, server)
    queue.on_fatal = lambda: server.end(EXIT_RESTART)
    _warn(settings)
    server.take_hangup()
    server.run(sockets=[listener])
    gc.freeze()  # the interpreter's last look through all that the libraries made took two seconds, and found nothing
    return server.exit_code


class Server(uvicorn.Server):
    """uvicorn with our bounds, which ends with an exit code instead of by raising its signal again."""

    def __init__(self, settings: Settings, app: FastAPI, address: str) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                http=bounded_protocol(settings.receive_timeout_s, settings.max_connections),
                loop="asyncio",  # another one would accept past our `Listener`
                ws="none",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=settings.public_url is not None,
                timeout_graceful_shutdown=GRACE_S,
            )
        )
        self.app = app
        self.address = address
        self.once_listening: Callable[[], None] = lambda: None  # runs on a thread of its own
        self.exit_code = 0
        self._asked = False

    def end(self, exit_code: int) -> None:
        """Stop gracefully, from any thread; by force where a lost engine keeps the process from ending."""
        self.exit_code = exit_code
        self.should_exit = True
        last_resort = threading.Timer(EXIT_BY_FORCE_S, os._exit, (exit_code,))
        last_resort.daemon = True
        last_resort.start()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """The first signal stops gracefully, the second ends the process at once, whatever hangs.

        A terminal that is closed may send SIGHUP twice, from the kernel and from its shell.
        """
        if self._asked and sig != signal.SIGHUP:
            ffmpeg.kill_all()
            os._exit(self.exit_code)
        self._asked = self.should_exit = True

    def take_hangup(self) -> None:
        """A closed terminal is a request to end, as SIGTERM is, unless it was ignored from outside, as nohup does."""
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            signal.signal(signal.SIGHUP, self.handle_exit)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        log.info("listening on %s; loading the model", self.address)
        threading.Thread(target=self.once_listening, name="i2v-load", daemon=True).start()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        log.info("stopping; a second signal ends the process at once")
        self.app.state.context.stopping.set()  # routes that wait answer before connections are closed
        await super().shutdown(sockets)


def _load(settings: Settings, queue: JobQueue, server: Server) -> None:
    """Load the engine and hand it to the queue; a model that cannot be loaded ends the server with its reason."""
    try:
        engine = load_engine(settings, queue.report_loading)
        queue.attach(engine, mutex_for(settings))
    except Exception as error:
        queue.fail_loading(str(error))
        log.error("the model could not be loaded: %s", error, exc_info=log.isEnabledFor(logging.DEBUG))
        server.end(EXIT_RESTART if isinstance(error, FatalEngineError) else EXIT_FAILED)
        return
    log.info("model: %s", introduce(engine.info))
    pages = "web page, " if settings.ui else ""
    log.info("ready at %s (%sPOST /api/predict/, /v1/videos, /docs)", server.address, pages)


def _listen(settings: Settings) -> Listener:
    """The listening socket, taken before anything slow, so that a busy port is said at once. Raises OSError.

    It names its protocol, by which asyncio knows TCP and turns Nagle's algorithm off: head and body of an answer are
    two writes, and the second would wait 40 ms for the client's delayed acknowledgement of the first.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    made = socket.create_server((settings.host, settings.port), family=family, backlog=2048)
    return Listener(family, socket.SOCK_STREAM, socket.IPPROTO_TCP, fileno=made.detach())


def _address(settings: Settings, listener: socket.socket) -> str:
    """Where a browser on this machine finds the server."""
    host = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(settings.host, settings.host)  # noqa: S104 - compared only
    host = f"[{host}]" if ":" in host and not host.startswith("[") else host
    return f"http://{host}:{listener.getsockname()[1]}"


def _warn(settings: Settings) -> None:
    token = settings.api_token.get_secret_value() if settings.api_token else None
    if token is None and settings.host not in _LOOPBACK:
        log.warning("=" * 78)
        log.warning("OPEN TO THE NETWORK WITHOUT A TOKEN: anyone who reaches %s can use this server,", settings.host)
        log.warning("see every photo and video, and delete them. Set I2V_API_TOKEN to close it.")
        log.warning("=" * 78)
    elif token is not None and len(token) < SHORT_TOKEN:
        log.warning("the token has %d characters; one of at least %d cannot be guessed", len(token), SHORT_TOKEN)
