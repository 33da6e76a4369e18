"""The commands that make videos: `i2v generate` for one, `i2v batch` for each row of a table.

Both work on this machine or, with `--url`, through a server. The other commands take from here how an engine is loaded
and a server is connected to, with progress on the terminal. What only a running command needs is imported inside of it.
"""

import contextlib
import sys
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from i2v.cli.options import SERVER, VIDEO, Quiet, Token
from i2v.errors import InvalidRequest
from i2v.request import GenerateRequest
from i2v.settings import Settings

if TYPE_CHECKING:
    from PIL import Image

    from i2v.cli.batch import Row
    from i2v.cli.local import Local
    from i2v.cli.terminal import Display
    from i2v.client import Client


def generate(
    settings: Settings,
    fields: dict[str, Any],
    image: Annotated[Path | None, typer.Argument(help="the photo: PNG, JPEG or WebP", show_default=False)] = None,
    prompt: Annotated[str | None, typer.Argument(help="what happens in the video", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="the MP4 (default: video_<time>_<random>.mp4)")
    ] = None,
    again: Annotated[
        Path | None, typer.Option("--from", help="a video made here: run its settings again", rich_help_panel=VIDEO)
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="a running server, such as http://127.0.0.1:7860", rich_help_panel=SERVER)
    ] = None,
    token: Token = None,
    quiet: Quiet = False,
) -> None:
    """Make one video of a photo, on this machine or through a server (--url). Prints the path of the MP4."""
    from i2v.cli import inputs

    asked = (inputs.read_settings(again).model_dump() if again else {}) | fields
    if prompt is not None:
        asked["prompt"] = prompt
    path = inputs.check_target(out or new_path())
    request = inputs.build_request(asked, settings)
    photo = _photo(image, again, settings)
    with display(quiet) as shown:
        if not image:
            shown.say("No photo given: the first frame stands for it, so the new video will differ a little.")
        if url is not None:
            with connect(url, token) as client:
                generate_through(client, image or photo, asked, path, shown)
        else:
            loaded = load(settings, shown)
            generate_here(loaded, request, photo, path, shown)
            loaded.close()
    print(path)


def _photo(image: Path | None, again: Path | None, settings: Settings) -> "Image.Image":
    from i2v.cli import inputs

    if image is not None:
        return inputs.read_photo(image, settings)
    if again is not None:
        return inputs.first_frame(again)
    raise InvalidRequest("a photo is missing: i2v generate IMAGE PROMPT, or i2v generate --from VIDEO", field="image")


def make_rows(
    settings: Settings,
    table: Annotated[Path, typer.Argument(help="CSV or JSON lines; columns image, prompt, out and any video option")],
    out: Annotated[Path, typer.Option("--out", "-o", help="folder of the videos")] = Path("."),
    url: Annotated[str | None, typer.Option(help="a running server", rich_help_panel=SERVER)] = None,
    token: Token = None,
    quiet: Quiet = False,
) -> None:
    """Make one video for each row of a table. Rows whose video is there are skipped, so a broken run can go on."""
    from i2v.cli import batch, inputs

    rows = batch.read_rows(table, out, lambda asked: inputs.build_request(asked, settings))
    todo = [row for row in rows if not row.out.exists()]
    with display(quiet) as shown, contextlib.ExitStack() as stack:
        shown.say(f"{len(rows)} rows, {len(rows) - len(todo)} of them done already")
        if not todo:
            return
        out.mkdir(parents=True, exist_ok=True)
        make = _maker(settings, url, token, shown, stack)
        failed = sum(not _made(row, settings, make, shown) for row in todo)
    if failed:
        print(f"[ERROR] {failed} of {len(todo)} rows failed; the same command runs those again", file=sys.stderr)
        raise typer.Exit(1)


def _maker(
    settings: Settings, url: str | None, token: str | None, shown: "Display", stack: contextlib.ExitStack
) -> "Callable[[Row, Image.Image], None]":
    """How a row becomes a video: on the server at `url`, or on an engine that is loaded here."""
    if url is not None:
        client = stack.enter_context(connect(url, token))
        return lambda row, photo: generate_through(client, row.image, row.asked, row.out, shown)
    loaded = load(settings, shown)
    stack.callback(loaded.close)
    return lambda row, photo: generate_here(loaded, row.request, photo, row.out, shown)


def _made(row: "Row", settings: Settings, make: "Callable[[Row, Image.Image], None]", shown: "Display") -> bool:
    """Make one row's video and print its path; False, with the error on stderr, where only this row failed."""
    from i2v.cli import batch, inputs

    shown.say(f"line {row.number}: {row.out.name}")
    try:
        inputs.check_target(row.out)
        make(row, inputs.read_photo(row.image, settings))
    except batch.ROW_ERRORS as error:
        print(f"[ERROR] line {row.number}: {error}", file=sys.stderr)
        return False
    print(row.out)
    return True


def generate_here(
    loaded: "Local", request: GenerateRequest, photo: "Image.Image", path: Path, shown: "Display"
) -> None:
    """One job on the loaded engine, with bars and the summary."""
    from i2v.jobs.summary import summary

    job = loaded.run(request, photo, path, on_wait=shown.waiting, on_step=shown.step)
    shown.say(summary(job))


def generate_through(
    client: "Client", photo: "Image.Image | Path", asked: dict[str, Any], path: Path, shown: "Display"
) -> None:
    """One job on a server, with bars; Ctrl-C cancels it there."""
    parameters = {name: value for name, value in asked.items() if value is not None}
    video = client.generate(photo, parameters.pop("prompt"), on_progress=shown.video, **parameters)
    shown.show("downloading", None)
    video.save(path)
    seconds = sum(video.stage_seconds.values())
    shown.say(f"{video.id}: {video.size}, {video.seconds} s, seed {video.seed}, model {video.model}, {seconds:.1f} s")


def load(settings: Settings, shown: "Display") -> "Local":
    """The engine that the settings name, introduced in one line. Raises `ModelUnavailable`."""
    from i2v.cli import local
    from i2v.loading import introduce

    loaded = local.load(settings, shown.loading)
    shown.say(introduce(loaded.engine.info))
    return loaded


def connect(url: str, token: str | None) -> "Client":
    """A client of the server at `url`; nothing is sent yet. Raises `ClientError` for what is no address."""
    from i2v.client import Client

    return Client(url, token=token)


def display(quiet: bool) -> "Display":
    """Progress on stderr."""
    from rich.console import Console

    from i2v.cli.terminal import Display

    return Display(Console(stderr=True), quiet=quiet)


def new_path() -> Path:
    """A name with date and time, in the current folder."""
    from i2v.video import new_file_name

    return Path(new_file_name(datetime.now().astimezone()))
