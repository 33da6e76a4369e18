"""Every operator setting, its range and its default. Read from a YAML file, then `I2V_*` variables, then flags.

Knows nothing of what the settings do. `load_settings` is the only reader of the environment in the package.
"""

import base64
import binascii
import os
from pathlib import Path
from typing import Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator
from pydantic_settings import (
    BaseSettings,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    YamlConfigSettingsSource,
)

from i2v.errors import SettingsError, refusals
from i2v.request import MAX_PIXELS, MAX_SIDE, RESOLUTIONS, SIDES, GenerateRequest, Preset, PublicLimits

ENV_PREFIX = "I2V_"
SHORT_KEY = 16  # bytes; a shorter key of webhooks can be guessed from one message


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class PredictSettings(_Group):
    on_disconnect: Literal["finish", "cancel"] = Field(
        "finish", description="what happens to the running job of a caller of /api/predict/ that went away"
    )


class QueueSettings(_Group):
    length: int = Field(16, ge=1, le=10_000, description="jobs that may wait; one more is answered 503")
    per_caller: int = Field(0, ge=0, description="waiting jobs one caller may have (0: no share); one more is 429")
    step_timeout_s: float = Field(600, gt=0, description="a denoising step longer than this counts as a hang")
    attempts: int = Field(2, ge=1, le=10, description="how often a job that killed the process is started in all")


class RetentionSettings(_Group):
    days: float = Field(0, ge=0, description="finished videos older than this are removed (0: kept)")
    count: int = Field(0, ge=0, description="finished videos kept at most (0: no limit)")
    gigabytes: float = Field(0, ge=0, description="space finished videos may take (0: no limit)")


class FakeSettings(_Group):
    """For people who write clients and tests: how the fake engine of `model: fake` behaves."""

    step_s: float = Field(0, ge=0, le=60, description="seconds a denoising step of the fake engine takes")
    fail: Literal["none", "error", "out_of_memory", "invalid_output", "fatal", "hang"] = Field(
        "none", description="how each job of the fake engine fails"
    )
    fail_step: int = Field(1, ge=1, description="the denoising step at which it fails")


class Settings(BaseSettings):
    """The whole configuration. Field descriptions are the help texts of flags and of `configs/default.yaml`."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX,
        env_nested_delimiter="__",
        extra="forbid",
        frozen=True,
        nested_model_default_partial_update=True,
    )

    # Server
    host: str = Field("127.0.0.1", description="address to listen on; 0.0.0.0 opens the server to the network")
    port: int = Field(7860, ge=0, le=65535, description="port to listen on; 0 takes a free one")
    allowed_hosts: tuple[str, ...] = Field((), description="host names accepted beside loopback names and IP addresses")
    api_token: SecretStr | None = Field(None, description="guards every route but /livez and /readyz when set")
    max_body_mb: float = Field(24, gt=0, le=1024, description="largest request body, in MB")
    max_bodies_mb: float = Field(256, gt=0, description="request bodies held at once, in MB; more are answered 503")
    receive_timeout_s: float = Field(30, gt=0, description="how long a client may take to send a request")
    max_connections: int = Field(1000, ge=1, description="open connections; more are answered 503")
    public_url: str | None = Field(None, description="address clients see behind a proxy, for links")
    webhook_secret: SecretStr | None = Field(None, description="signs webhooks; without it none are sent")
    webhook_allow_private: bool = Field(False, description="let webhooks go to addresses inside this network")
    ui: bool = Field(True, description="serve the web page at /")

    # Model
    model: str = Field("auto", description="auto, demo, fake, a hub id, or a diffusers folder")
    revision: str | None = Field(None, description="hub revision (none: the pinned one)")
    cache_dir: Path | None = Field(None, description="where downloaded weights are kept (none: the hub's own cache)")
    offline: bool = Field(False, description="never ask the hub; use what is cached")
    device: str = Field("auto", description="auto, cpu, cuda or cuda:N")
    dtype: Literal["auto", "float16", "bfloat16", "float32"] = Field(
        "auto", description="auto: float16 on CUDA, float32 on CPU and for the demo model"
    )
    conventions: Literal["authors", "upstream"] = Field(
        "authors", description="whose choices where VGen and diffusers differ"
    )
    image_concat_scale: float | None = Field(
        None, ge=1.0, le=4.0, description="weight of the photo beside the noise (none: the model's own)"
    )
    memory: Literal["auto", "resident", "low-vram"] = Field("auto", description="memory plan")
    max_vram_gb: float | None = Field(None, gt=0, description="pretend the card has only this much memory")
    accelerate: Literal["auto", "off", "compile", "graph"] = Field(
        "auto", description="faster forms of the denoising step; auto: CUDA graphs on CUDA, none on the CPU"
    )
    presets: Path | None = Field(None, description="file with presets (none: the package's own)")

    # What callers may ask for
    resolutions: tuple[int, ...] = Field(RESOLUTIONS, description="square sizes of /api/predict/; add 1024 to allow it")
    default_preset: Preset = Field(
        GenerateRequest.model_fields["preset"].default, description="preset when a request names none"
    )
    max_image_pixels: int = Field(50_000_000, ge=1, description="largest photo, in pixels, that is decoded")

    # Jobs and files
    outputs: Path = Field(Path("outputs"), description="folder of videos and of the job table")
    database: str | None = Field(None, description="SQLAlchemy URL (none: SQLite in the outputs folder)")
    min_free_mb: int = Field(200, ge=0, description="no job is taken with less free disk than this")
    queue: QueueSettings = QueueSettings()
    predict: PredictSettings = PredictSettings()
    retention: RetentionSettings = RetentionSettings()
    fake: FakeSettings = FakeSettings()

    # Logging
    log_level: Literal["debug", "info", "warning", "error"] = Field("info", description="least level that is written")
    log_json: bool = Field(False, description="one JSON object a line instead of text")

    @field_validator("resolutions")
    @classmethod
    def _sizes(cls, value: tuple[int, ...]) -> tuple[int, ...]:
        low = SIDES[0]
        if not value or any(side % 8 or not low <= side <= MAX_SIDE for side in value):
            raise ValueError(f"must hold at least one size, each a multiple of 8 from {low} to {MAX_SIDE}")
        return value

    @field_validator("api_token", "webhook_secret")
    @classmethod
    def _not_blank(cls, value: SecretStr | None) -> SecretStr | None:
        """An empty variable is a mistake in a script, and would be a server without a token."""
        if value is not None and (not (text := value.get_secret_value()) or text != text.strip()):
            raise ValueError("must not be empty or begin or end with blanks; leave it out to have none")
        return value

    @field_validator("webhook_secret")
    @classmethod
    def _signs(cls, value: SecretStr | None) -> SecretStr | None:
        if value is not None:
            try:
                key = webhook_key(value.get_secret_value())
            except binascii.Error:
                raise ValueError("must be base64 after whsec_") from None
            if len(key) < SHORT_KEY:
                raise ValueError(f"must be a key of at least {SHORT_KEY} bytes")
        return value

    def base_of(self, own: str) -> str:
        """Scheme and host that clients reach this server under, without a final slash; `own` is what a request says."""
        return (self.public_url or own).rstrip("/")

    @property
    def limits(self) -> PublicLimits:
        """The public limits with this operator's resolutions and defaults."""
        largest = max(self.resolutions)
        return PublicLimits(
            resolutions=self.resolutions,
            side=(SIDES[0], max(SIDES[1], largest)),
            max_pixels=max(MAX_PIXELS, largest**2),
            defaults={"preset": self.default_preset},
        )

    @classmethod
    def settings_customise_sources(
        cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **others: Any
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only what the caller passes; `load_settings` adds the environment and the file."""
        return (init_settings,)


def webhook_key(secret: str) -> bytes:
    """The key that signs webhooks: base64 after `whsec_`, as Standard Webhooks has it, or the text as it is.

    Raises `binascii.Error`.
    """
    if not secret.startswith("whsec_"):
        return secret.encode()
    return base64.b64decode(secret.removeprefix("whsec_"), validate=True)


SECRETS = frozenset(name for name, field in Settings.model_fields.items() if SecretStr in get_args(field.annotation))


def load_settings(config: Path | None = None, **flags: Any) -> Settings:
    """Flags over `I2V_*` variables over the YAML file `config` over defaults. Flags that are None count as not given.

    Raises `SettingsError`, in one readable text, for an unknown key, variable or flag and for a value out of range.
    """
    if config is not None:
        _refuse_broken_file(config)

    class Loaded(Settings):
        @classmethod
        def settings_customise_sources(
            cls, settings_cls: type[BaseSettings], init_settings: PydanticBaseSettingsSource, *_: Any, **others: Any
        ) -> tuple[PydanticBaseSettingsSource, ...]:
            file = YamlConfigSettingsSource(settings_cls, yaml_file=config) if config else None
            return (init_settings, others["env_settings"], *((file,) if file else ()))

    _refuse_unknown_variables()
    try:
        return Loaded(**{name: value for name, value in flags.items() if value is not None})
    except ValidationError as error:
        raise SettingsError(_readable(error, config)) from None
    except ValueError as error:  # a variable that should be JSON and is not
        raise SettingsError(str(error)) from None


def _refuse_broken_file(config: Path) -> None:
    try:
        found = yaml.safe_load(config.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"the settings file {config} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"the settings file {config} is not valid YAML: {error}") from None
    if found is not None and not isinstance(found, dict):
        raise SettingsError(f"the settings file {config} must hold `name: value` lines, not a {type(found).__name__}")


def _refuse_unknown_variables() -> None:
    known = {f"{ENV_PREFIX}{name}".upper() for name in Settings.model_fields} | {f"{ENV_PREFIX}CONFIG"}
    for variable in sorted(os.environ):
        if variable.upper().startswith(ENV_PREFIX) and variable.upper().split("__")[0] not in known:
            raise SettingsError(
                f"the environment variable {variable} is no setting of i2v; known: {', '.join(sorted(known))}"
            )


def _readable(error: ValidationError, config: Path | None) -> str:
    lines = []
    for refusal in refusals(error):
        if refusal.is_unknown:
            lines.append(f"{refusal.field}: unknown setting; known: {', '.join(sorted(Settings.model_fields))}")
        else:
            lines.append(
                refusal.words((lambda value: "a secret" if value else "nothing") if refusal.field in SECRETS else repr)
            )
    where = f" (file {config}, I2V_* variables, flags)" if config else " (I2V_* variables, flags)"
    return f"settings are not valid{where}: " + "; ".join(lines)
