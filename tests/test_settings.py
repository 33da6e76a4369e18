"""Settings: the file explains every one, precedence is file < variable < flag, and whatever is wrong is named."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from i2v.errors import SettingsError
from i2v.flags import Flag, flags, settings_from, takes_settings
from i2v.settings import Settings, load_settings, webhook_key
from tests.conftest import ROOT

CONFIGS = ROOT / "configs"
DEFAULT = CONFIGS / "default.yaml"
ALL_FLAGS = list(flags())


def names(settings: dict[str, Any]) -> set[str]:
    """Dotted names of all settings in a nested dictionary."""
    found = set()
    for name, value in settings.items():
        found |= {f"{name}.{inner}" for inner in names(value)} if isinstance(value, dict) else {name}
    return found


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "settings.yaml"
    path.write_text(text)
    return path


def test_the_default_file_equals_the_defaults() -> None:
    assert load_settings(DEFAULT).model_dump() == Settings().model_dump()


def test_the_default_file_names_every_setting_and_no_other() -> None:
    assert names(yaml.safe_load(DEFAULT.read_text())) == names(Settings().model_dump())


def test_the_default_file_names_the_variable_and_the_flag_of_every_setting() -> None:
    words = " ".join(DEFAULT.read_text().replace("#", " ").split())
    for flag in ALL_FLAGS:
        variable = "I2V_" + "__".join(flag.path).upper()
        assert f"[{variable}, {flag.option}" in words, flag.path
    assert "[I2V_API_TOKEN]" in words


def test_every_setting_in_the_default_file_is_explained() -> None:
    lines = DEFAULT.read_text().splitlines()
    for number, line in enumerate(lines):
        if line.strip() and not line.lstrip().startswith("#"):
            assert lines[number - 1].lstrip().startswith("#"), f"line {number + 1}: {line}"


SHIPPED = sorted(set(CONFIGS.glob("*.yaml")) - {CONFIGS / "presets.yaml"})  # that one has tests of its own


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_every_shipped_file_loads(path: Path) -> None:
    assert isinstance(load_settings(path), Settings)


def test_a_variable_overrides_the_file_and_a_flag_overrides_both(tmp_path: Path, monkeypatch) -> None:
    path = written(tmp_path, "port: 1001\nhost: 127.0.0.2\nmodel: demo\n")
    assert load_settings(path).port == 1001
    monkeypatch.setenv("I2V_PORT", "1002")
    monkeypatch.setenv("I2V_HOST", "127.0.0.3")
    assert load_settings(path).port == 1002
    settings = load_settings(path, port=1003)
    assert (settings.port, settings.host, settings.model) == (1003, "127.0.0.3", "demo")


def test_precedence_holds_inside_a_group_one_setting_at_a_time(tmp_path: Path, monkeypatch) -> None:
    path = written(tmp_path, "queue:\n  length: 3\n  attempts: 4\n  per_caller: 5\n")
    monkeypatch.setenv("I2V_QUEUE__ATTEMPTS", "6")
    queue = load_settings(path, queue={"per_caller": 7}).queue
    assert (queue.length, queue.attempts, queue.per_caller, queue.step_timeout_s) == (3, 6, 7, 600)


def test_a_flag_that_was_not_given_leaves_the_variable(monkeypatch) -> None:
    monkeypatch.setenv("I2V_PORT", "1002")
    assert load_settings(port=None).port == 1002


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("prot: 1", ["prot: unknown setting", "port"]),
        ("queue:\n  lenght: 1", ["queue.lenght: unknown setting"]),
        ("port: high", ["port: ", "'high'"]),
        ("port: 70000", ["port: ", "70000"]),
        ("resolutions: 512", ["resolutions: ", "512"]),
        ("resolutions: []", ["resolutions: ", "at least one size"]),
        ("resolutions: [256, 500]", ["resolutions: ", "multiple of 8"]),
        ("resolutions: [8192]", ["resolutions: ", "4096"]),
        ("memory: little", ["memory: ", "'auto', 'resident' or 'low-vram'", "'little'"]),
        ("- a\n- b", ["`name: value` lines, not a list"]),
        ("port: [", ["not valid YAML"]),
    ],
)
def test_a_wrong_line_in_the_file_is_named_with_its_file(tmp_path: Path, text: str, wanted: list[str]) -> None:
    path = written(tmp_path, text)
    with pytest.raises(SettingsError) as caught:
        load_settings(path)
    for words in [*wanted, str(path)]:
        assert words in str(caught.value)


def test_a_missing_file_is_an_error_and_not_the_defaults(tmp_path: Path) -> None:
    with pytest.raises(SettingsError, match=r"missing\.yaml cannot be read"):
        load_settings(tmp_path / "missing.yaml")


def test_an_empty_file_is_the_defaults(tmp_path: Path) -> None:
    assert load_settings(written(tmp_path, "# nothing\n")).model_dump() == Settings().model_dump()


@pytest.mark.parametrize("variable", ["I2V_PROT", "I2V_QUEUES__LENGTH", "i2v_prot"])
def test_an_unknown_variable_is_named(monkeypatch, variable: str) -> None:
    monkeypatch.setenv(variable, "1")
    with pytest.raises(SettingsError, match=variable):
        load_settings()


def test_an_unknown_setting_in_a_known_group_of_variables_is_named(monkeypatch) -> None:
    monkeypatch.setenv("I2V_QUEUE__LENGHT", "1")
    with pytest.raises(SettingsError, match=r"queue\.lenght: unknown setting"):
        load_settings()


def test_a_variable_that_is_no_json_list_is_named(monkeypatch) -> None:
    monkeypatch.setenv("I2V_RESOLUTIONS", "256,512")
    with pytest.raises(SettingsError, match="resolutions"):
        load_settings()


def test_the_token_is_not_shown_with_the_settings(monkeypatch) -> None:
    monkeypatch.setenv("I2V_API_TOKEN", "secret-word")
    settings = load_settings()
    assert "secret-word" not in f"{settings!r} {settings} {settings.model_dump_json()}"


def test_a_token_of_the_wrong_type_is_not_shown_either(tmp_path: Path) -> None:
    """A token of digits alone is a number in YAML; the message used to repeat it into the log."""
    with pytest.raises(SettingsError, match="api_token") as caught:
        load_settings(written(tmp_path, "api_token: 8315551212"))
    assert "8315551212" not in str(caught.value)


@pytest.mark.fault("F21", "an empty secret, as a variable and in the file", before="a server without a token")
@pytest.mark.parametrize("name", ["api_token", "webhook_secret"])
@pytest.mark.parametrize("value", ["", " ", "\t", "0123456789abcdef ", "\n0123456789abcdef"])
def test_an_empty_secret_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, value: str, record_property: Any
) -> None:
    with pytest.raises(SettingsError, match=f"{name}: must not be empty"):
        load_settings(written(tmp_path, f"{name}: {json.dumps(value)}"))
    monkeypatch.setenv(f"I2V_{name.upper()}", value)
    with pytest.raises(SettingsError, match=f"{name}: must not be empty") as caught:
        load_settings()
    assert "0123456789abcdef" not in str(caught.value)
    record_property("after", f"{value!r}: refused by name")


@pytest.mark.fault("F13", "a whsec_ secret that is no key", before="signs with an empty key, or with the text")
@pytest.mark.parametrize(
    "secret",
    [
        "whsec_",
        "whsec_!!!!",
        "whsec_AAAA",
        "whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQ",
        "whsec_-_-_-_-_-_-_-_-_-_-_-_-_",
        "short",
    ],
)
def test_a_webhook_secret_that_is_no_key_is_refused(
    monkeypatch: pytest.MonkeyPatch, secret: str, record_property: Any
) -> None:
    monkeypatch.setenv("I2V_WEBHOOK_SECRET", secret)
    with pytest.raises(SettingsError, match="webhook_secret: must be") as caught:
        load_settings()
    assert secret not in str(caught.value).replace("after whsec_", "")
    record_property("after", f"{secret}: refused")


@pytest.mark.parametrize("secret", ["whsec_c2VjcmV0LXNlY3JldC1zZWNyZXQ=", "any text of sixteen"])
def test_a_good_webhook_secret_is_taken(secret: str) -> None:
    settings = load_settings(webhook_secret=secret)
    assert settings.webhook_secret is not None
    assert webhook_key(secret) == (b"secret-secret-secret" if secret.startswith("whsec_") else secret.encode())


def test_the_limits_follow_the_resolutions() -> None:
    limits = load_settings(resolutions=(256, 1536)).limits
    assert limits.resolutions == (256, 1536)
    assert limits.side[1] == 1536
    assert limits.max_pixels == 1536**2


# Flags.


def test_every_setting_but_secrets_has_a_flag() -> None:
    secrets = {"api_token", "webhook_secret"}
    assert {".".join(flag.path) for flag in ALL_FLAGS} == names(Settings().model_dump()) - secrets


OTHER = {
    "auto": "cpu", "authors": "upstream", "exact": "fast", "finish": "cancel", "info": "debug",
    "none": "error",
}  # fmt: skip


def other_value(flag: Flag) -> tuple[list[str], Any]:
    """What to type for a value that is not the default, and the value."""
    default = flag.field.default
    if isinstance(default, bool):
        return [f"--no-{flag.option[2:]}" if default else flag.option], not default
    if isinstance(default, tuple):
        return [flag.option, "128", flag.option, "640"], ((128, 640) if default else ("128", "640"))
    if isinstance(default, int | float):
        return [flag.option, str(default + 1)], default + 1
    special = {"dtype": "float32", "memory": "resident", "accelerate": "graph"}
    special |= {name: Path("other") for name in ("outputs", "cache_dir", "presets")}
    value = special.get(flag.path[-1], OTHER.get(str(default), "other"))
    if flag.path[-1] in ("max_vram_gb", "image_concat_scale"):
        value = 3.0
    return [flag.option, str(value)], value


@pytest.mark.parametrize("flag", ALL_FLAGS, ids=lambda flag: flag.option)
def test_a_flag_sets_its_setting_and_nothing_else(flag: Flag) -> None:
    typed, value = other_value(flag)
    settings = settings_from(typed)
    assert settings is not None
    found = settings.model_dump(exclude_defaults=True)
    for name in flag.path:
        (only,) = found
        assert only == name
        found = found[name]
    assert found == value


def test_a_flag_overrides_variable_and_file(tmp_path: Path, monkeypatch) -> None:
    path = written(tmp_path, "port: 1001\nmodel: demo\n")
    monkeypatch.setenv("I2V_PORT", "1002")
    settings = settings_from(["--config", str(path), "--port", "1003"])
    assert settings is not None
    assert (settings.port, settings.model) == (1003, "demo")


def test_the_settings_file_can_be_named_by_a_variable(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("I2V_CONFIG", str(written(tmp_path, "port: 1001\n")))
    settings = settings_from([])
    assert settings is not None
    assert settings.port == 1001


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        (["--prot", "1"], "No such option: --prot"),
        (["--port"], "'--port' requires an argument"),
        (["extra"], "unexpected extra argument"),
        (["--port", "x"], "port: "),
        (["--queue-length", "0"], "queue.length: "),
        (["--api-token", "x"], "No such option: --api-token"),
    ],
)
def test_a_wrong_flag_is_named(typed: list[str], words: str) -> None:
    with pytest.raises(SettingsError, match=words.replace(".", r"\.")):
        settings_from(typed)


def test_help_shows_every_flag_and_gives_no_settings(capsys: pytest.CaptureFixture[str]) -> None:
    assert settings_from(["--help"]) is None
    shown = capsys.readouterr().out
    assert "Start the server." in shown
    for flag in ALL_FLAGS:
        assert flag.option in shown


def test_a_command_of_a_larger_program_takes_the_same_flags() -> None:
    import typer

    app, found = typer.Typer(), []

    def serve(settings: Settings) -> None:
        """Start it."""
        found.append(settings)

    app.command("serve")(takes_settings(serve))
    app.command("other")(lambda: None)
    done = CliRunner().invoke(app, ["serve", "--queue-length", "3", "--no-ui"])
    assert done.exit_code == 0, done.output
    assert (found[0].queue.length, found[0].ui) == (3, False)
