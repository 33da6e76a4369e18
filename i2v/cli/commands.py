"""The `i2v` command: serve, generate, batch, jobs, inspect, doctor, bench.

Results go to stdout, progress and errors to stderr; an error is one sentence, with exit code 2 where the call itself
must change and 1 otherwise. Imports neither torch nor the web stack before a command needs it.
"""

import json
import sys
from collections.abc import Callable, Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from i2v import __version__
from i2v.cli import generation
from i2v.cli.options import Quiet, Token, takes_fields
from i2v.errors import I2VError, InvalidRequest, ModelUnavailable, SettingsError
from i2v.flags import takes_settings
from i2v.settings import Settings

if TYPE_CHECKING:
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
    checks = list(doctor.checks(settings))
    for check in checks:
        print(check)
    raise typer.Exit(0 if all(check.ok for check in checks) else 1)


def _calibrate(settings: Settings, image: Path | None) -> bool:
    """Print what each scale gives and what to set; True when the scale in use is the right one."""
    from i2v.cli import calibration, inputs

    if settings.model == "fake":
        raise InvalidRequest("the fake engine has no weights to calibrate; name a model with --model", field="model")
    photo = inputs.read_photo(image or calibration.EXAMPLE, settings)
    with generation.display(quiet=False) as display:
        local = generation.load(settings, display)
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
    """What `i2v jobs` does."""

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
    with generation.connect(url, token) as client:
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
            print(client.download(id, inputs.check_target(out or generation.new_path())))


def _bench(
    settings: Settings,
    fields: dict[str, Any],
    image: Annotated[Path | None, typer.Option(help="the photo (default: one that ships)", show_default=False)] = None,
    runs: Annotated[int, typer.Option(min=1, max=100, help="jobs measured, after one to warm up")] = 3,
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="write the raw numbers here")] = None,
    quiet: Quiet = False,
) -> None:
    """Measure this machine: the same job some times, with median seconds by stage and by step, and peak memory."""
    from rich.console import Console

    from i2v.cli import benchmark, calibration, inputs
    from i2v.cli.terminal import facts_lines, seconds_table

    inputs.build_request(benchmark.usual("real") | fields, settings)  # a wrong call is refused before a model is loaded
    photo = inputs.read_photo(image or calibration.EXAMPLE, settings)
    if json_file is not None:
        inputs.check_writable(json_file)
    with generation.display(quiet) as display:
        local = generation.load(settings, display)
        request = inputs.build_request(benchmark.usual(local.engine.info.kind) | fields, settings)
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


def _register(name: str, function: Callable[..., None], **options: Any) -> None:
    app.command(name)(takes_settings(function, **options))


BENCH_FIELDS = ("num_frames", "steps", "preset")

_register("serve", _serve)
_register("generate", takes_fields(generation.generate), only=ENGINE_SETTINGS, panel=HERE)
_register("batch", generation.make_rows, only=ENGINE_SETTINGS, panel=HERE)
_register("doctor", _doctor)
_register(
    "bench",
    takes_fields(_bench, only=BENCH_FIELDS, tell_defaults=False),
    only=ENGINE_SETTINGS | {"accelerate"},
    panel="On this machine",
)
