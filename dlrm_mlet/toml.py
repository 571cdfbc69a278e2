"""TOML -> frozen dataclasses, checked key by key: an error names the key, the value and what was expected."""

import dataclasses
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


class ConfigError(ValueError):
    """A config that can't be meant: the message names the file, the key, the value and what was expected."""


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises ConfigError where it is missing or isn't TOML."""
    try:
        return tomllib.loads(path.read_text(encoding="utf-8-sig"))  # with or without a byte order mark
    except FileNotFoundError:
        raise ConfigError(f"{path}: no such file; expected a TOML file") from None
    except (ValueError, RecursionError) as error:  # also a number or a date that is none, and tables too deep
        raise ConfigError(f"{path}: not TOML: {error}") from None
    except OSError as error:
        raise ConfigError(f"{path}: can't be read ({error}); expected a TOML file") from None


def build(cls: type[T], table: Mapping[str, Any], prefix: str = "") -> T:
    """A dataclass from a TOML table; an unknown, missing or wrongly typed key is a ConfigError that names it."""
    fields = {f.name: f for f in dataclasses.fields(cls)}  # type: ignore[arg-type]
    hints = typing.get_type_hints(cls)
    for key in table:
        if key not in fields:
            raise ConfigError(f"unknown key {prefix}{key}: expected one of {', '.join(fields)}")
    for name, f in fields.items():
        if name not in table and f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING:
            raise ConfigError(f"missing key {prefix}{name}")
    return cls(**{key: convert(value, hints[key], prefix + key) for key, value in table.items()})


def convert(value: Any, hint: Any, key: str) -> Any:
    """A TOML value as the type a field declares. Raises ConfigError, which names the key, where it isn't one."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, dict):
        return build(typing.cast(type, hint), value, f"{key}.")
    if origin in (types.UnionType, typing.Union):
        for choice in arguments:
            try:
                return convert(value, choice, key)
            except ConfigError:
                continue
    elif origin is tuple and isinstance(value, list | tuple):
        return tuple(convert(item, arguments[0], f"{key}[{i}]") for i, item in enumerate(value))
    elif origin is dict and isinstance(value, dict):
        return {name: convert(item, arguments[1], f"{key}.{name}") for name, item in value.items()}
    elif (origin is typing.Literal and value in arguments) or hint is Any:
        return value
    elif hint is float and type(value) in (int, float):
        if not math.isfinite(value):  # which is equal to nothing, or larger than all
            raise ConfigError(f"{key} = {value!r}: expected a finite number")
        return float(value)
    elif isinstance(hint, type) and type(value) is hint:  # bool is no int here
        return value
    elif hint is type(None) and value is None:
        return None
    raise ConfigError(f"{key} = {value!r}: expected {_describe(hint)}")


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is tuple:
        return f"a list of {_describe(arguments[0])}"
    if origin is dict:
        return f"a table of {_describe(arguments[1])}"
    if origin is typing.Literal:
        return "one of " + ", ".join(map(repr, arguments))
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_describe(choice) for choice in arguments if choice is not type(None))
    return "a table" if dataclasses.is_dataclass(hint) else str(getattr(hint, "__name__", hint))


def override(table: dict[str, Any], assignment: str) -> None:
    """Put a `section.key=value`, value in TOML, in place of what the table has. Raises ConfigError where it is none."""
    dotted, equals, text = assignment.partition("=")
    if not equals:
        raise ConfigError(f"--set {assignment}: expected section.key=value, such as model.inner_dim=64")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    *sections, key = dotted.strip().split(".")
    for section in sections:
        table = table.setdefault(section, {})
        if not isinstance(table, dict):
            raise ConfigError(f"--set {assignment}: {section} is not a table")
    table[key] = value
