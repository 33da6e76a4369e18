"""Command-line flags of the server, one for each setting, made from `i2v.settings` so that there is one truth.

`i2v serve`, `python server.py` and `start_app.sh` share them: a Typer command takes them through `takes_settings`, and
`settings_from` reads a bare argument list. Values stay text here; `load_settings` checks them, so that a flag, a
variable and a line in the file meet the same ranges and the same words.
"""

import inspect
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import typer
from pydantic import BaseModel, SecretStr
from pydantic.fields import FieldInfo

from i2v.errors import SettingsError
from i2v.request import plain_type
from i2v.settings import Settings, load_settings

SHORTER = {"--max-vram-gb": "--max-vram"}  # another name for the same option

CONFIG_HELP = "settings file (YAML); I2V_* variables and flags override it"


@dataclass(frozen=True, slots=True)
class Flag:
    """One flag: `path` leads to the setting ("queue", "length"), `option` is what is typed ("--queue-length")."""

    path: tuple[str, ...]
    field: FieldInfo

    @property
    def parameter(self) -> str:
        return "_".join(self.path)

    @property
    def option(self) -> str:
        return "--" + self.parameter.replace("_", "-")


def flags() -> Iterator[Flag]:
    """Every setting but secrets: a command line is seen by every user of the machine."""
    for name, field in Settings.model_fields.items():
        if inspect.isclass(field.annotation) and issubclass(field.annotation, BaseModel):
            for inner, inner_field in field.annotation.model_fields.items():
                yield Flag((name, inner), inner_field)
        elif SecretStr not in (field.annotation, *get_args(field.annotation)):
            yield Flag((name,), field)


def takes_settings(
    function: Callable[..., Any], *, only: Collection[str] | None = None, panel: str | None = None
) -> Callable[..., Any]:
    """Make a Typer command, with `--config` and one option for each setting, out of a function that takes `Settings`.

    Usage: `app.command("serve")(takes_settings(serve))`. The settings are the function's first parameter; further ones
    stay options and arguments of their own, before the flags. `only` names the settings that become flags (none: all),
    `panel` the heading they get in the help. A bad value raises `SettingsError` when the command runs.
    """
    chosen = [flag for flag in flags() if only is None or flag.path[0] in only]
    own = list(inspect.signature(function).parameters.values())[1:]

    def command(config: Path | None = None, **given: Any) -> Any:
        flagged = {flag.parameter: given.pop(flag.parameter, None) for flag in chosen}
        return function(load_settings(config, **_nested(flagged)), **given)

    config = typer.Option("--config", envvar="I2V_CONFIG", help=CONFIG_HELP, rich_help_panel=panel)
    parameters = [*own, _parameter("config", Path | None, config), *(_flag_parameter(flag, panel) for flag in chosen)]
    keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    command.__signature__ = inspect.Signature(keyword_only)  # type: ignore[attr-defined]
    command.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    command.__doc__ = function.__doc__
    command.__name__ = getattr(function, "__name__", "serve")
    return command


def settings_from(arguments: Sequence[str]) -> Settings | None:
    """The effective settings of a command line; None when `--help` was asked for and has been answered.

    Raises `SettingsError` for a flag that is not known, for a bad value, and for whatever `load_settings` refuses.
    """
    app = typer.Typer(add_completion=False, rich_markup_mode=None)
    found: list[Settings] = []

    def serve(settings: Settings) -> None:
        """Start the server."""
        found.append(settings)

    app.command()(takes_settings(serve))
    try:
        typer.main.get_command(app).main(args=list(arguments), prog_name="server.py", standalone_mode=False)
    except typer.TyperException as error:  # usage; in stand-alone mode Typer would print it and exit
        raise SettingsError(error.format_message()) from None
    return found[0] if found else None


def _nested(given: dict[str, Any]) -> dict[str, Any]:
    """Flat parameters in the groups of `load_settings`; what was not given is left to the other sources."""
    settings: dict[str, Any] = {}
    for flag in flags():
        value = given.get(flag.parameter)
        if value is None or value == []:
            continue
        *groups, name = flag.path
        target = settings
        for group in groups:
            target = target.setdefault(group, {})
        target[name] = value
    return settings


def _flag_parameter(flag: Flag, panel: str | None) -> inspect.Parameter:
    kind, metavar = _kind(flag.field.annotation)
    names = (
        [f"{flag.option}/--no-{flag.option[2:]}"]
        if kind is bool
        else [flag.option, *SHORTER.get(flag.option, "").split()]
    )
    annotation = list[str] if kind is list else bool if kind is bool else str
    option = typer.Option(
        *names,
        help=_help(flag.field),
        metavar=None if kind is bool else metavar,
        show_default=False,
        rich_help_panel=panel,
    )
    return _parameter(flag.parameter, annotation | None, option)


def _kind(annotation: Any) -> tuple[type, str]:
    """What is typed for a setting: a switch, a repeated value or one value; and its name in the help."""
    kind = plain_type(annotation)
    if get_origin(kind) is tuple:
        return list, _kind(get_args(kind)[0])[1]
    if get_origin(kind) is Literal:
        return str, "|".join(get_args(kind))
    if kind is bool:
        return bool, ""
    return str, {int: "INTEGER", float: "NUMBER", Path: "PATH"}.get(kind, "TEXT")


def _help(field: FieldInfo) -> str:
    """The description, and the default where the description does not already say what it means."""
    default = field.default
    if default in (None, (), 0, ""):
        return field.description or ""
    if isinstance(default, bool):
        default = "on"
    elif isinstance(default, tuple):
        default = ", ".join(map(str, default))
    return f"{field.description} (default: {default})"


def _parameter(name: str, annotation: Any, option: Any) -> inspect.Parameter:
    return inspect.Parameter(
        name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=Annotated[annotation, option]
    )
