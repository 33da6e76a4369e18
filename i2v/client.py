"""A client of the i2v server in one file: copy it anywhere; it needs httpx and nothing of this package.

`Client.generate` submits to `/v1/videos`, waits with progress and returns a `Video` or raises a `ClientError`.
`Client.predict` speaks the older `POST /api/predict/` and returns a dictionary instead of raising.
"""

import base64
import contextlib
import io
import os
import random
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar
from urllib.parse import quote, urlsplit

import httpx

T = TypeVar("T")
Variant = Literal["video", "thumbnail", "spritesheet", "gif", "webp"]

FINAL = frozenset({"completed", "failed", "cancelled"})
MAX_RETRY_AFTER_S = 300.0  # a server that asks for longer is not waited for
_LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})


class ClientError(Exception):
    """Base of all. `status` is the HTTP status (None without an answer), `code` the server's stable word for it.

    `job_id` names the job that a waiting call (`predict`) had queued before it failed: it may still end well.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        field: str | None = None,
        retry_after: float | None = None,
        job_id: str | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.status = status
        self.code = code
        self.field = field
        self.retry_after = retry_after
        self.job_id = job_id


class ConnectionFailed(ClientError):
    """No server at the address, or the connection was lost."""


class TimedOut(ClientError):
    """The server did not answer within the read time-out, or the video was not ready in time."""


class InvalidRequest(ClientError):
    """400, 413, 422: the request cannot be served as it is; `field` names what to change."""


class NotAuthorized(ClientError):
    """401, 403."""


class NotFound(ClientError):
    """404."""


class Conflict(ClientError):
    """409: not ready yet, final already, or an idempotency key used for another request."""


class Busy(ClientError):
    """429, 503: the queue is full, the server is starting, or memory ran out; `retry_after` seconds."""


class ServerError(ClientError):
    """Any other answer that is no success."""


class JobFailed(ClientError):
    """The job ended without a video; `code` says how (`generation_failed`, `out_of_memory`, `interrupted`, ...)."""


class JobCancelled(JobFailed):
    """Somebody cancelled the job."""


class _Saves(Protocol):
    def save(self, fp: Any, format: str) -> None: ...


# A file path, bytes, a data URL, or a PIL image.
ImageInput = str | os.PathLike[str] | bytes | _Saves


@dataclass(frozen=True, slots=True)
class Video:
    """A snapshot of one job and its video. Times are aware UTC. `raw` is the server's own object."""

    id: str
    status: Literal["queued", "in_progress", "completed", "failed", "cancelled"]
    progress: int  # 0..100
    prompt: str | None = None
    model: str | None = None
    size: str | None = None  # "512x512"
    seconds: float | None = None  # of the clip
    seed: int | None = None
    created_at: datetime | None = None
    completed_at: datetime | None = None
    position: int | None = None  # in the queue; 0 is next
    eta_s: float | None = None
    stage_seconds: dict[str, float] = field(default_factory=dict)
    peak_memory_mb: float | None = None
    error_code: str | None = None
    error_message: str | None = None
    raw: dict[str, Any] = field(default_factory=dict, repr=False)
    client: "Client | None" = field(default=None, repr=False, compare=False)

    @property
    def is_final(self) -> bool:
        return self.status in FINAL

    def save(self, path: str | os.PathLike[str], variant: Variant = "video") -> Path:
        """Download into `path`; see `Client.download`."""
        if self.client is None:
            raise ClientError("this Video belongs to no client; call Client.download(video.id, path)")
        return self.client.download(self.id, path, variant)


OnProgress = Callable[[Video], None]


class Client:
    """One server, one HTTP session; thread-safe, and a context manager.

    `timeout` is (connect, read) in seconds; `predict` needs a read time-out as long as a job. What is safe to repeat
    (GET, DELETE, a POST with an idempotency key, whatever the server refused with 503 or 429) is repeated up to
    `attempts` times in all, after `Retry-After` or a growing pause.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:7860",
        token: str | None = None,
        timeout: tuple[float, float] = (5, 600),
        *,
        attempts: int = 5,
        sleep: Callable[[float], None] = time.sleep,
        transport: httpx.BaseTransport | None = None,
    ) -> None:
        connect, read = timeout
        if urlsplit(url).scheme not in ("http", "https") or not urlsplit(url).hostname:
            raise ClientError("the server's address must look like http://127.0.0.1:7860")
        self._attempts = max(1, attempts)
        self._sleep = sleep
        self._http = httpx.Client(
            base_url=url.rstrip("/"),
            headers={"Authorization": f"Bearer {token}"} if token else {},
            timeout=httpx.Timeout(read, connect=connect),
            transport=transport,
            trust_env=urlsplit(url).hostname not in _LOOPBACK,  # a proxy for the internet cannot reach this machine
        )

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._http.close()

    # Videos

    def generate(
        self,
        image: ImageInput,
        prompt: str,
        *,
        on_progress: OnProgress | None = None,
        timeout: float | None = None,
        **params: Any,
    ) -> Video:
        """Submit, wait, and return the finished video (`video.save(path)` downloads it).

        `params` are those of `/v1/videos`: size "512x512" (or width and height), num_frames, fps, motion_fps, steps,
        guidance_scale, negative_prompt, seed, preset, fit. Raises a `ClientError`; Ctrl-C cancels the job.
        """
        video = self.submit(image, prompt, **params)
        try:
            return self.wait(video.id, on_progress=on_progress, timeout=timeout)
        except KeyboardInterrupt:
            with contextlib.suppress(ClientError):
                self.cancel(video.id)
            raise

    def submit(self, image: ImageInput, prompt: str, *, idempotency_key: str | None = None, **params: Any) -> Video:
        """Queue a job and return at once. A key is made up when none is given, so a repeated POST makes one job."""
        width, height = params.pop("width", None), params.pop("height", None)
        if width is not None and height is not None:
            params["size"] = f"{width}x{height}"
        elif width is not None or height is not None:
            raise InvalidRequest("width and height go together", field="height" if height is None else "width")
        data, name, kind = _image_file(image)
        answer = self._send(
            "POST",
            "/v1/videos",
            headers={"Idempotency-Key": idempotency_key or uuid.uuid4().hex},
            data={"prompt": prompt, **{key: str(value) for key, value in params.items() if value is not None}},
            files={"input_reference": (name, data, kind)},
        )
        return self._video(_body(answer))

    def get(self, id: str) -> Video:
        """The job as it stands now. Raises `NotFound`."""
        return self._video(_body(self._send("GET", _path(id))))

    def wait(self, id: str, *, on_progress: OnProgress | None = None, timeout: float | None = None) -> Video:
        """Poll until the job is final; return a completed one, raise `JobFailed`, `JobCancelled` or `TimedOut` else.

        A server that restarts meanwhile is waited for as long as `attempts` lasts. `timeout` seconds None: no limit.
        """
        end = None if timeout is None else time.monotonic() + timeout
        seen = None
        while True:
            answer = self._send("GET", _path(id))
            video = self._video(_body(answer))
            if on_progress is not None and video != seen:
                on_progress(video)
            seen = video
            if video.is_final:
                return _completed(video)
            if end is not None and time.monotonic() >= end:
                raise TimedOut(f"the video {id} is not ready after {timeout:g} s; it is {video.status}")
            self._sleep(_poll_after(answer))

    def cancel(self, id: str) -> Video:
        """Stop a queued or running job; returns when the GPU has stopped. A final job stays as it is (`Conflict`)."""
        return self._video(_body(self._send("POST", f"{_path(id)}/cancel", safe=True)))

    def remix(self, id: str, prompt: str) -> Video:
        """Queue the same photo and settings with another prompt."""
        key = {"Idempotency-Key": uuid.uuid4().hex}
        return self._video(_body(self._send("POST", f"{_path(id)}/remix", headers=key, json={"prompt": prompt})))

    def list(
        self, *, limit: int = 20, after: str | None = None, order: Literal["asc", "desc"] = "desc"
    ) -> "list[Video]":
        """One page of jobs, the newest first."""
        query = {"limit": limit, "order": order} | ({"after": after} if after else {})
        return [self._video(one) for one in _body(self._send("GET", "/v1/videos", params=query))["data"]]

    def list_all(self, *, order: Literal["asc", "desc"] = "desc") -> Iterator[Video]:
        """Every job, page by page."""
        after = None
        while page := self.list(limit=100, after=after, order=order):
            yield from page
            after = page[-1].id

    def delete(self, id: str) -> None:
        """Remove a job and its file; one that runs is cancelled first."""
        self._send("DELETE", _path(id))

    def download(self, id: str, path: str | os.PathLike[str], variant: Variant = "video") -> Path:
        """Stream a finished video (or its thumbnail, sprite sheet, GIF, WebP) to `path`, complete or not at all."""
        return self._fetch(f"{_path(id)}/content", Path(path), {} if variant == "video" else {"variant": variant})

    def ready(self) -> bool:
        """Whether the model is loaded and jobs are taken."""
        try:
            return self._http.get("/readyz").status_code == 200
        except httpx.TransportError:
            return False

    # The older dialect

    def predict(
        self,
        image: ImageInput,
        prompt: str,
        resolution: int = 512,
        num_frames: int = 16,
        fps: int = 8,
        steps: int = 50,
        guidance_scale: float = 9.0,
        seed: int | None = None,
        negative_prompt: str | None = None,
        *,
        save_to: str | os.PathLike[str] | None = None,
    ) -> dict[str, Any]:
        """`POST /api/predict/`: waits for the video, and returns a dictionary whatever happens.

        Success: `{"success": True, "video_path", "summary", "time", "duration", "average_duration", "job_id",
        "video_url"}`, where `video_path` lies on the server; with `save_to` also `"saved_to"`, downloaded here.
        Failure: `{"success": False, "error", "code", "status", "field", "job_id"}`; a `job_id` there names a job that
        was queued, and may still end well.
        """
        try:
            data = [_data_url(image), prompt, resolution, num_frames, fps, steps, guidance_scale]
            if seed is not None or negative_prompt is not None:
                data += [seed, negative_prompt]
            answer = self._send("POST", "/api/predict/", json={"data": data})
            body = _body(answer)
            video_path, summary, seconds = body["data"]
            result = {
                "success": True,
                "video_path": video_path,
                "summary": summary,
                "time": seconds,
                "duration": body.get("duration"),
                "average_duration": body.get("average_duration"),
                "job_id": answer.headers.get("x-job-id"),
                "video_url": answer.headers.get("x-video-url"),
            }
            if save_to is not None:
                result["saved_to"] = str(self._fetch(_output_path(result["video_url"]), Path(save_to), {}))
        except ClientError as error:
            return {
                "success": False,
                "error": error.message,
                "code": error.code,
                "status": error.status,
                "field": error.field,
                "job_id": error.job_id,
            }
        return result

    # HTTP

    def _send(self, method: str, path: str, *, safe: bool = False, **request: Any) -> httpx.Response:
        """One request, repeated where that cannot make a second job."""
        safe = safe or method in ("GET", "DELETE") or "Idempotency-Key" in request.get("headers", {})

        def ask() -> httpx.Response:
            answer = self._http.request(method, path, **request)
            if not answer.is_success:
                raise _error_of(answer)
            return answer

        return self._repeat(ask, safe)

    def _repeat(self, ask: Callable[[], T], safe: bool) -> T:
        """What `ask` returns, which is called again as `_pause` says. Raises a `ClientError`."""
        attempt = 1
        while True:
            try:
                return ask()
            except httpx.TransportError as failure:
                error = _transport_error(failure)
            except ClientError as refused:
                error = refused
            pause = _pause(error, attempt, safe)
            if pause is None or attempt >= self._attempts:
                raise error
            attempt += 1
            self._sleep(pause)

    def _fetch(self, path: str, target: Path, query: dict[str, str]) -> Path:
        part = target.with_name(f"{target.name}.{uuid.uuid4().hex[:8]}.part")
        try:
            self._repeat(lambda: self._stream(path, part, query), safe=True)
            part.replace(target)
        except OSError as error:
            raise ClientError(f"{target} cannot be written: {error.strerror}") from error
        finally:
            with contextlib.suppress(OSError):
                part.unlink()
        return target

    def _stream(self, path: str, part: Path, query: dict[str, str]) -> None:
        with self._http.stream("GET", path, params=query) as answer:
            if not answer.is_success:
                answer.read()
                raise _error_of(answer)
            with part.open("wb") as file:
                for chunk in answer.iter_bytes():
                    file.write(chunk)

    def _video(self, body: dict[str, Any]) -> Video:
        error = body.get("error") or {}
        return Video(
            id=body["id"],
            status=body["status"],
            progress=int(body.get("progress") or 0),
            prompt=body.get("prompt"),
            model=body.get("model"),
            size=body.get("size"),
            seconds=None if body.get("seconds") is None else float(body["seconds"]),
            seed=body.get("seed"),
            created_at=_time(body.get("created_at")),
            completed_at=_time(body.get("completed_at")),
            position=body.get("position"),
            eta_s=body.get("eta_s"),
            stage_seconds=body.get("stage_seconds") or {},
            peak_memory_mb=body.get("peak_memory_mb"),
            error_code=error.get("code"),
            error_message=error.get("message"),
            raw=body,
            client=self,
        )


def _completed(video: Video) -> Video:
    if video.status == "completed":
        return video
    kind = JobCancelled if video.status == "cancelled" else JobFailed
    raise kind(video.error_message or f"the job ended as {video.status}", code=video.error_code or video.status)


def _path(id: str) -> str:
    return f"/v1/videos/{quote(id, safe='')}"


def _output_path(url: object) -> str:
    """Where the server that was asked keeps a video, whatever address it believes to have."""
    return f"/outputs/{urlsplit(str(url)).path.rpartition('/')[2]}"


def _time(seconds: float | None) -> datetime | None:
    return None if seconds is None else datetime.fromtimestamp(seconds, UTC)


def _poll_after(answer: httpx.Response) -> float:
    """How long the server asks to wait before the next look, within 0.1 to 30 s; 1 s when it does not say."""
    try:
        return min(30.0, max(0.1, float(answer.headers["openai-poll-after-ms"]) / 1000))
    except (KeyError, ValueError):
        return 1.0


def _body(answer: httpx.Response) -> dict[str, Any]:
    try:
        body = answer.json()
    except ValueError:
        body = None
    if not isinstance(body, dict):
        raise ServerError("the answer is not a JSON object; is this an i2v server?", status=answer.status_code)
    return body


_KINDS: dict[int, type[ClientError]] = {
    400: InvalidRequest,
    401: NotAuthorized,
    403: NotAuthorized,
    404: NotFound,
    409: Conflict,
    413: InvalidRequest,
    422: InvalidRequest,
    429: Busy,
    503: Busy,
}


def _error_of(answer: httpx.Response) -> ClientError:
    """The typed error of an answer in either dialect's error form, or of a proxy's page."""
    try:
        body = answer.json()
    except ValueError:
        body = None
    told = body.get("error") if isinstance(body, dict) else None
    message, code, named = f"the server answered {answer.status_code}", None, None
    if isinstance(told, dict):  # /v1
        message, code, named = told.get("message") or message, told.get("code"), told.get("param")
    elif isinstance(told, str):  # /api/predict/
        message = told
        first = next(iter(body.get("detail") or []), None) if isinstance(body, dict) else None
        if isinstance(first, dict):
            code, loc = first.get("type"), first.get("loc") or []
            named = str(loc[-1]) if len(loc) > 1 else None
    kind = _KINDS.get(answer.status_code, ServerError)
    retry_after = _retry_after(answer.headers.get("retry-after"))
    return kind(
        str(message),
        status=answer.status_code,
        code=code,
        field=named,
        retry_after=retry_after,
        job_id=answer.headers.get("x-job-id"),
    )


def _retry_after(value: str | None) -> float | None:
    """Seconds out of a `Retry-After` header: a number, or a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (ValueError, TypeError):
        return None


def _transport_error(failure: httpx.TransportError) -> ClientError:
    if isinstance(failure, httpx.ConnectError | httpx.ConnectTimeout):
        address = failure.request.url.copy_with(raw_path=b"/")
        return ConnectionFailed(f"no server answers at {address}", code="unreachable")
    if isinstance(failure, httpx.TimeoutException):
        return TimedOut("the server did not answer in time", code="timeout")
    return ConnectionFailed("the connection to the server was lost", code="connection_lost")


def _pause(error: ClientError, attempt: int, safe: bool) -> float | None:
    """Seconds to wait before the same request again; None when it must not be repeated.

    A server that refused with 429 or 503 has queued nothing, unless it names a job: one that ran out of memory, or that
    goes on when the server runs again. Without an answer only what is safe to repeat is repeated, and what never
    reached a server.
    """
    refused = isinstance(error, Busy) and error.code != "out_of_memory" and error.job_id is None
    unanswered = isinstance(error, ConnectionFailed | TimedOut) and (safe or error.code == "unreachable")
    if not (refused or unanswered or (safe and error.status in (502, 504))):
        return None
    if error.retry_after is not None:
        return error.retry_after if error.retry_after <= MAX_RETRY_AFTER_S else None
    return float(min(8.0, 0.5 * 2 ** (attempt - 1)) * random.uniform(0.8, 1.2))  # noqa: S311 - spreads callers, no secret


def _image_bytes(image: ImageInput) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, str) and image.startswith("data:"):
        try:
            return base64.b64decode(image.partition(",")[2])
        except ValueError:
            raise InvalidRequest("the data URL is not valid base64", field="image") from None
    if isinstance(image, str | os.PathLike):
        if str(image).startswith(("http://", "https://")):
            raise InvalidRequest("an address is not taken; download the photo and pass its path", field="image")
        try:
            return Path(image).read_bytes()
        except OSError as error:
            raise InvalidRequest(f"the photo {image} cannot be read: {error.strerror}", field="image") from None
    out = io.BytesIO()
    image.save(out, format="PNG")
    return out.getvalue()


def _image_file(image: ImageInput) -> tuple[bytes, str, str]:
    """Bytes, a file name and a media type by the first bytes; the server looks for itself."""
    data = _image_bytes(image)
    kinds = {b"\x89PNG": "png", b"\xff\xd8\xff": "jpeg", b"RIFF": "webp"}
    kind = next((name for start, name in kinds.items() if data.startswith(start)), None)
    return data, f"photo.{kind or 'bin'}", f"image/{kind}" if kind else "application/octet-stream"


def _data_url(image: ImageInput) -> str:
    if isinstance(image, str) and image.startswith("data:"):
        return image
    data, _, kind = _image_file(image)
    return f"data:{kind if kind.startswith('image/') else 'image/png'};base64,{base64.b64encode(data).decode()}"
