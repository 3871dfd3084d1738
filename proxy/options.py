"""Command-line options made from the fields of `Settings`, and a settings error as one clear sentence."""

from collections.abc import Mapping
from typing import Any, Literal, get_args, get_origin

import click
from pydantic import SecretStr, ValidationError
from pydantic.fields import FieldInfo

from proxy.settings import ENV_PREFIX, Settings


class SettingsError(click.ClickException):
    """A wrong value: one sentence on stderr, exit code 2, no usage text around it."""

    exit_code = 2


def option_name(field: str) -> str:
    return "--" + field.replace("_", "-")


def variable_name(field: str) -> str:
    return ENV_PREFIX + field.upper()


def shown_default(info: FieldInfo) -> str:
    """The default as help and docs print it; a value that depends on the user is named, not resolved."""
    if info.default_factory is not None:
        return "~/.cache/anaphora"
    default = info.default.get_secret_value() if isinstance(info.default, SecretStr) else info.default
    if isinstance(default, bool):
        return str(default).lower()
    return "none" if default in ("", None) else str(default)


def settings_options() -> list[click.Parameter]:
    """One option per field. Values stay text: pydantic checks them as it does those of the environment."""
    return [
        click.Option(
            [option_name(name), name],
            metavar=_metavar(info.annotation),
            help=f"{info.description}  [{variable_name(name)}; default: {shown_default(info)}]",
        )
        for name, info in Settings.model_fields.items()
    ]


def load_settings(given: Mapping[str, str | None]) -> Settings:
    """Settings from the command line over the environment over the defaults.

    Raises SettingsError with one sentence that names the option and its variable.
    """
    chosen: dict[str, Any] = {name: text for name, text in given.items() if text is not None}
    try:
        settings = Settings(**chosen)
        settings.key_pairs()
    except ValidationError as error:
        raise SettingsError(_sentence(error)) from None
    except OSError as error:
        raise SettingsError(f"{option_name('api_keys_file')}: cannot be read: {error.strerror}.") from None
    except ValueError as error:
        raise SettingsError(f"{option_name('api_keys_file')}: {error}.") from None
    return settings


def _sentence(error: ValidationError) -> str:
    first = error.errors(include_url=False, include_input=False)[0]
    message = first["msg"].removeprefix("Value error, ").replace("Input should", "the value should").rstrip(".")
    if not first["loc"]:
        return f"{message}."
    field = str(first["loc"][0])
    return f"{option_name(field)} ({variable_name(field)}): {message}."


def _metavar(annotation: Any) -> str:
    if get_origin(annotation) is Literal:
        return "|".join(get_args(annotation))
    return {bool: "true|false", int: "INTEGER", float: "SECONDS", str: "TEXT", SecretStr: "TEXT"}.get(
        annotation, "PATH"
    )
