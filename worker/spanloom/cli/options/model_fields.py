"""Options of a command that are made from the fields of a pydantic model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, TypeVar, get_args, get_origin

import click
from pydantic import BaseModel, ByteSize
from pydantic.fields import FieldInfo

from spanloom.cli.options.parameters import duration, size

__all__ = ["model_options"]

_SECONDS = "_seconds"

F = TypeVar("F", bound=Callable[..., Any])


def model_options(model: type[BaseModel]) -> Callable[[F], F]:
    """Return a decorator that adds one option to a command for each field of the model, by its name.

    `lease_seconds` becomes `--lease`, which takes a duration. Types, defaults and descriptions are those of the fields.
    The model itself validates the values.
    """

    def decorate(command: F) -> F:
        for name, field in reversed(model.model_fields.items()):
            command = click.option(_spelling(name), name, help=field.description, **_settings(name, field))(command)
        return command

    return decorate


def _spelling(name: str) -> str:
    return "--" + name.removesuffix(_SECONDS).replace("_", "-")


def _settings(name: str, field: FieldInfo) -> dict[str, Any]:
    kind, default = field.annotation, field.default
    if kind is bool:
        return {"is_flag": True, "default": default}
    if get_origin(kind) is Literal:
        return {"type": click.Choice(get_args(kind)), "default": default, "show_default": True}
    if name.endswith(_SECONDS):
        return {"type": duration, "default": f"{default:g}s", "show_default": True, "metavar": "DURATION"}
    if kind is int:
        return {"type": int, "default": default, "show_default": True, "metavar": "N"}
    if int in get_args(kind):
        return {"type": int, "default": default, "metavar": "N"}
    if ByteSize in get_args(kind):
        return {"type": size, "default": default, "metavar": "SIZE"}
    if get_origin(kind) is tuple:
        settings = {"default": ",".join(default), "show_default": True, "metavar": "NAME,…"}
        return {**settings, "callback": lambda context, parameter, value: _names(value)}
    assert str in (kind, *get_args(kind)), f"no option can be made of {name}: {kind}"
    return {"default": default, "metavar": "NAME"}


def _names(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not all(names):
        raise click.BadParameter(
            f"{text!r} is no list of queues; write their names with commas between, such as high,default"
        )
    return names
