"""The `i2v` command: serve, generate, batch, jobs, inspect, doctor, bench.

Results go to stdout, progress and errors to stderr; an error is one sentence, with exit code 2 where the call itself
must change and 1 otherwise. Imports neither torch nor the web stack before a command needs it.
"""

import contextlib
import json
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer
from rich.console import Console

from i2v import __version__
from i2v.errors import I2VError, InvalidRequest, ModelUnavailable, SettingsError
from i2v.flags import takes_settings
from i2v.request import GenerateRequest
from i2v.settings import Settings

if TYPE_CHECKING:
    from PIL import Image

    from i2v.cli.local import Local
    from i2v.cli.terminal import Display
    from i2v.client import Client
    from i2v.engine.engine import Engine

app = typer.Typer(
    name="i2v",
    help="Image to video with I2VGen-XL: a photo and a prompt in, an MP4 out.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

DEFAULT_URL = "http://127.0.0.1:7860"
MODEL_SETTINGS = ("model", "revision", "cache_dir", "offline", "device", "dtype", "conventions", "image_concat_scale")
ENGINE_SETTINGS = frozenset((*MODEL_SETTINGS, "memory", "max_vram_gb", "outputs"))
HERE = "On this machine (without --url)"
VIDEO = "Video"
SERVER = "Through a server"

Token = Annotated[
    str | None,
    typer.Option(envvar="I2V_API_TOKEN", help="the server's token", rich_help_panel=SERVER, show_envvar=True),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress and no summary")]
Size = Annotated[
    str | None, typer.Option(metavar="WxH", help="size of the video in pixels, such as 512x512", rich_help_panel=VIDEO)
]


def _video_option(name: str, help: str) -> Any:
    """An option whose help tells the default that `GenerateRequest` has."""
    return typer.Option(help=f"{help} (default: {GenerateRequest.model_fields[name].default:g})", rich_help_panel=VIDEO)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line (`sys.argv` when no arguments are given) and exit."""
    from i2v.client import ClientError
    from i2v.client import InvalidRequest as RefusedByServer

    arguments = sys.argv[1:] if arguments is None else arguments
    try:
        app(args=list(arguments), prog_name="i2v")
    except SettingsError as error:
        _fail(str(error), 2)
    except (InvalidRequest, RefusedByServer) as error:
        _fail(error.message, 2)
    except (I2VError, ClientError) as error:
        hint = (
            "; name another server with --url http://HOST:PORT" if getattr(error, "code", None) == "unreachable" else ""
        )
        _fail(error.message + hint, 1)
    except ModelUnavailable as error:
        _fail(str(error), 1)
    except Exception as error:  # a defect of ours; its traceback helps only who asks for it
        if "--traceback" in arguments:
            raise
        _fail(f"unexpected {type(error).__name__}: {error} (i2v --traceback ... shows where)", 1)


def _fail(message: str, code: int) -> None:
    print(f"[ERROR] {message}", file=sys.stderr)
    sys.exit(code)


def _print_version(asked: bool) -> None:
    if asked:
        print(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="print the version and exit")
    ] = False,
    traceback: Annotated[bool, typer.Option("--traceback", help="show where an unexpected error came from")] = False,
) -> None:
    """Both are read elsewhere: by `_print_version` and by `main`."""


def _serve(settings: Settings) -> None:
    """Start the server: web page, POST /api/predict/ and /v1/videos."""
    from i2v.serve import serve

    raise typer.Exit(serve(settings))


def _doctor(
    settings: Settings,
    calibrate: Annotated[
        bool, typer.Option("--calibrate", help="load the model and find the image_concat_scale that its weights want")
    ] = False,
    image: Annotated[
        Path | None, typer.Option(help="the photo to calibrate with (default: one that ships)", show_default=False)
    ] = None,
) -> None:
    """Check this machine: Python, torch, device, ffmpeg, folders, disk, model, port; or calibrate the model."""
    from i2v.cli import doctor

    if calibrate:
        raise typer.Exit(0 if _calibrate(settings, image) else 1)
    checks = doctor.run(settings)
    for check in checks:
        print(check)
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


def _calibrate(settings: Settings, image: Path | None) -> bool:
    """Print what each scale gives and what to set; True when the scale in use is the right one."""
    from i2v.cli import calibration, inputs

    if settings.model == "fake":
        raise InvalidRequest("the fake engine has no weights to calibrate; name a model with --model", field="model")
    photo = inputs.read_photo(image or calibration.EXAMPLE, settings)
    with _display(quiet=False) as display:
        local = _load(settings, display)
        with local.mutex.hold(display.waiting):
            found = calibration.calibrate(
                cast("Engine", local.engine),
                photo,
                calibration.short_request(local.engine.info.kind),
                on_trial=lambda scale: display.say(f"a short video at image_concat_scale {scale:g}"),
                on_step=display.step,
            )
        local.close()
    print(*found.lines(), sep="\n")
    return found.right


def _generate(
    settings: Settings,
    image: Annotated[Path | None, typer.Argument(help="the photo: PNG, JPEG or WebP", show_default=False)] = None,
    prompt: Annotated[str | None, typer.Argument(help="what happens in the video", show_default=False)] = None,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="the MP4 (default: video_<time>_<random>.mp4)")
    ] = None,
    again: Annotated[
        Path | None, typer.Option("--from", help="a video made here: run its settings again", rich_help_panel=VIDEO)
    ] = None,
    size: Size = None,
    width: Annotated[int | None, typer.Option(help="pixels, a multiple of 8", rich_help_panel=VIDEO)] = None,
    height: Annotated[int | None, typer.Option(help="pixels, a multiple of 8", rich_help_panel=VIDEO)] = None,
    num_frames: Annotated[int | None, _video_option("num_frames", "frames")] = None,
    fps: Annotated[int | None, _video_option("fps", "frames a second of the file")] = None,
    motion_fps: Annotated[int | None, _video_option("motion_fps", "frames a second the model is told")] = None,
    steps: Annotated[int | None, _video_option("steps", "denoising steps")] = None,
    guidance_scale: Annotated[float | None, _video_option("guidance_scale", "how closely to follow the prompt")] = None,
    seed: Annotated[int | None, typer.Option(help="the same seed gives the same video", rich_help_panel=VIDEO)] = None,
    negative_prompt: Annotated[str | None, typer.Option(help="what must not be seen", rich_help_panel=VIDEO)] = None,
    preset: Annotated[str | None, typer.Option(metavar="exact|fast|turbo", rich_help_panel=VIDEO)] = None,
    fit: Annotated[
        str | None,
        typer.Option(metavar="crop|pad", help="how a photo of another shape is fitted", rich_help_panel=VIDEO),
    ] = None,
    url: Annotated[
        str | None, typer.Option(help="a running server, such as http://127.0.0.1:7860", rich_help_panel=SERVER)
    ] = None,
    token: Token = None,
    quiet: Quiet = False,
) -> None:
    """Make one video of a photo, on this machine or through a server (--url). Prints the path of the MP4."""
    from i2v.cli import inputs

    width, height = inputs.sized(size, width, height)
    given = {
        "prompt": prompt,
        "negative_prompt": negative_prompt,
        "width": width,
        "height": height,
        "num_frames": num_frames,
        "fps": fps,
        "motion_fps": motion_fps,
        "steps": steps,
        "guidance_scale": guidance_scale,
        "seed": seed,
        "preset": preset,
        "fit": fit,
    }
    asked = (inputs.read_settings(again).model_dump() if again else {}) | {
        name: value for name, value in given.items() if value is not None
    }
    path = inputs.check_target(out or _new_path())
    request = inputs.build_request(asked, settings)
    photo = _photo(image, again, settings)
    with _display(quiet) as display:
        if not image:
            display.say("No photo given: the first frame stands for it, so the new video will differ a little.")
        if url is not None:
            with _client(url, token) as client:
                generate_through(client, image or photo, asked, path, display)
        else:
            local = _load(settings, display)
            generate_here(local, request, photo, path, display)
            local.close()
    print(path)


def _photo(image: Path | None, again: Path | None, settings: Settings) -> "Image.Image":
    from i2v.cli import inputs

    if image is not None:
        return inputs.read_photo(image, settings)
    if again is not None:
        return inputs.first_frame(again)
    raise InvalidRequest("a photo is missing: i2v generate IMAGE PROMPT, or i2v generate --from VIDEO", field="image")


def generate_here(
    local: "Local", request: GenerateRequest, photo: "Image.Image", path: Path, display: "Display"
) -> None:
    """One job on the loaded engine, with bars and the summary."""
    from i2v.jobs.summary import summary

    job = local.run(request, photo, path, on_wait=display.waiting, on_step=display.step)
    display.say(summary(job))


def generate_through(
    client: "Client", photo: "Image.Image | Path", asked: dict[str, Any], path: Path, display: "Display"
) -> None:
    """One job on a server, with bars; Ctrl-C cancels it there."""
    parameters = {name: value for name, value in asked.items() if value is not None}
    video = client.generate(photo, parameters.pop("prompt"), on_progress=display.video, **parameters)
    display.show("downloading", None)
    video.save(path)
    seconds = sum(video.stage_seconds.values())
    display.say(f"{video.id}: {video.size}, {video.seconds} s, seed {video.seed}, model {video.model}, {seconds:.1f} s")


def _batch(
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
    failed = 0
    with _display(quiet) as display, contextlib.ExitStack() as stack:
        display.say(f"{len(rows)} rows, {len(rows) - len(todo)} of them done already")
        if not todo:
            return
        out.mkdir(parents=True, exist_ok=True)
        client = stack.enter_context(_client(url, token)) if url is not None else None
        local = _load(settings, display) if client is None else None
        for row in todo:
            display.say(f"line {row.number}: {row.out.name}")
            try:
                inputs.check_target(row.out)
                photo = inputs.read_photo(row.image, settings)
                if client is not None:
                    generate_through(client, row.image, row.asked, row.out, display)
                elif local is not None:
                    generate_here(local, row.request, photo, row.out, display)
                print(row.out)
            except batch.ROW_ERRORS as error:
                failed += 1
                print(f"[ERROR] line {row.number}: {error}", file=sys.stderr)
    if failed:
        _fail(f"{failed} of {len(todo)} rows failed; the same command runs those again", 1)


@app.command()
def inspect(
    video: Annotated[Path, typer.Argument(help="an MP4 made by i2v")],
    as_json: Annotated[bool, typer.Option("--json", help="one JSON object")] = False,
) -> None:
    """Show what a video is and the settings it was made with."""
    from i2v.cli import inputs
    from i2v.cli.terminal import facts_lines

    facts = inputs.describe_video(video)
    if as_json:
        print(json.dumps(facts, ensure_ascii=False, indent=2))
    else:
        print(*facts_lines(facts), sep="\n")


class Action(StrEnum):
    LIST = "list"
    SHOW = "show"
    CANCEL = "cancel"
    DELETE = "delete"
    DOWNLOAD = "download"


@app.command()
def jobs(
    action: Annotated[Action, typer.Argument(help="what to do", show_default=True)] = Action.LIST,
    id: Annotated[str | None, typer.Argument(help="the job (all but list)", show_default=False)] = None,
    url: Annotated[str, typer.Option(help="the server")] = DEFAULT_URL,
    token: Token = None,
    limit: Annotated[int, typer.Option(min=1, max=100, help="jobs listed")] = 20,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="the MP4 to download to")] = None,
) -> None:
    """List the jobs of a server, newest first; show, cancel, delete or download one."""
    from i2v.cli import inputs
    from i2v.cli.terminal import facts_lines, jobs_lines

    if action is not Action.LIST and id is None:
        raise InvalidRequest(f"i2v jobs {action} needs the id of a job; i2v jobs lists them", field="id")
    with _client(url, token) as client:
        if id is None or action is Action.LIST:
            print(*jobs_lines(client.list(limit=limit)), sep="\n")
        elif action is Action.SHOW:
            print(*facts_lines(inputs.job_facts(client.get(id).raw)), sep="\n")
        elif action is Action.CANCEL:
            print(f"{id}: {client.cancel(id).status}")
        elif action is Action.DELETE:
            client.delete(id)
            print(f"{id}: deleted")
        else:
            print(client.download(id, inputs.check_target(out or _new_path())))


def _bench(
    settings: Settings,
    image: Annotated[Path | None, typer.Option(help="the photo (default: one that ships)", show_default=False)] = None,
    runs: Annotated[int, typer.Option(min=1, max=100, help="jobs measured, after one to warm up")] = 3,
    size: Size = None,
    num_frames: Annotated[int | None, typer.Option(help="frames", rich_help_panel=VIDEO)] = None,
    steps: Annotated[int | None, typer.Option(help="denoising steps", rich_help_panel=VIDEO)] = None,
    preset: Annotated[str | None, typer.Option(metavar="exact|fast|turbo", rich_help_panel=VIDEO)] = None,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write the raw numbers here")] = None,
    quiet: Quiet = False,
) -> None:
    """Measure this machine: the same job some times, with median seconds by stage and by step, and peak memory."""
    from i2v.cli import benchmark, calibration, inputs
    from i2v.cli.terminal import facts_lines, seconds_table

    width, height = inputs.sized(size, None, None)
    given = {"width": width, "height": height, "num_frames": num_frames, "steps": steps, "preset": preset}
    asked = {name: value for name, value in given.items() if value is not None}
    inputs.build_request(benchmark.usual("real") | asked, settings)  # a wrong call is refused before a model is loaded
    photo = inputs.read_photo(image or calibration.EXAMPLE, settings)
    if json_file is not None:
        inputs.check_writable(json_file)
    with _display(quiet) as display:
        local = _load(settings, display)
        request = inputs.build_request(benchmark.usual(local.engine.info.kind) | asked, settings)
        with local.mutex.hold(display.waiting):
            found = benchmark.measure(
                local.engine,
                request,
                photo,
                runs,
                on_run=lambda number: display.say(f"run {number} of {runs}" if number else "warming up"),
                on_step=display.step,
            )
        local.close()
    print(*facts_lines(found.facts()), sep="\n")
    Console().print(seconds_table(found.seconds()))
    if json_file is not None:
        json_file.write_text(json.dumps(found.raw(), indent=2) + "\n", encoding="utf-8")


def _load(settings: Settings, display: "Display") -> "Local":
    from i2v.cli.local import load
    from i2v.loading import introduce

    local = load(settings, display.loading)
    display.say(introduce(local.engine.info))
    return local


def _client(url: str, token: str | None) -> "Client":
    from i2v.client import Client

    return Client(url, token=token)


def _display(quiet: bool) -> "Display":
    from i2v.cli.terminal import Display

    return Display(Console(stderr=True), quiet=quiet)


def _new_path() -> Path:
    from datetime import datetime

    from i2v.video import new_file_name

    return Path(new_file_name(datetime.now().astimezone()))


def _register(name: str, function: Callable[..., None], **options: Any) -> None:
    app.command(name)(takes_settings(function, **options))


_register("serve", _serve)
_register("generate", _generate, only=ENGINE_SETTINGS, panel=HERE)
_register("batch", _batch, only=ENGINE_SETTINGS, panel=HERE)
_register("doctor", _doctor)
_register("bench", _bench, only=ENGINE_SETTINGS | {"accelerate"}, panel="On this machine")
