"""The options that several commands share, and one option for each field of a request, made from `GenerateRequest`.

A command takes the fields through `takes_fields`, as it takes the settings through `i2v.flags.takes_settings`. Knows no
engine, no server and no terminal.
"""

import inspect
from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from i2v.request import GenerateRequest, default_of, plain_type

VIDEO = "Video"  # headings in the help
SERVER = "Through a server"

Token = Annotated[
    str | None,
    typer.Option(envvar="I2V_API_TOKEN", help="the server's token", rich_help_panel=SERVER, show_envvar=True),
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="no progress and no summary")]

FIELDS = tuple(name for name in GenerateRequest.model_fields if name != "prompt")  # which is an argument


def field_type(name: str) -> tuple[type, str | None]:
    """What is typed for a field of a request (`int`, `float` or `str`), and `one|other` where it has choices."""
    kind = plain_type(GenerateRequest.model_fields[name].annotation)
    return (str, "|".join(get_args(kind))) if get_origin(kind) is Literal else (kind, None)


def takes_fields(
    function: Callable[..., None], *, only: Collection[str] = FIELDS, tell_defaults: bool = True
) -> Callable[..., None]:
    """Give a command `--size` and one option for each field in `only`.

    `function` takes the settings, the fields that were given as a dict, and then its own parameters, which stay before
    the new options. The result takes the settings first, for `takes_settings`. Raises `InvalidRequest` for a bad size.
    """
    own = list(inspect.signature(function).parameters.values())
    added = [
        _parameter("size", str, "size of the video in pixels, such as 512x512", "WxH"),
        *(_option(name, tell_defaults) for name in only),
    ]

    def command(settings: Any, size: str | None, **given: Any) -> None:
        from i2v.cli.inputs import sized

        fields = {name: given.pop(name) for name in only}
        fields["width"], fields["height"] = sized(size, fields.get("width"), fields.get("height"))
        function(settings, {name: value for name, value in fields.items() if value is not None}, **given)

    command.__signature__ = inspect.Signature([own[0], *_keyword_only([*own[2:], *added])])  # type: ignore[attr-defined]
    command.__doc__ = function.__doc__
    command.__name__ = function.__name__
    return command


def _keyword_only(parameters: list[inspect.Parameter]) -> list[inspect.Parameter]:
    return [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]


def _option(name: str, tell_default: bool) -> inspect.Parameter:
    kind, choices = field_type(name)
    told = GenerateRequest.model_fields[name].description or ""
    if tell_default and isinstance(default_of(name), int | float):
        told += f" (default: {default_of(name):g})"
    return _parameter(name, kind, told, choices)


def _parameter(name: str, kind: type, told: str, metavar: str | None) -> inspect.Parameter:
    option = typer.Option(help=told, metavar=metavar, rich_help_panel=VIDEO)
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[kind | None, option]
    )
