"""Frozen dataclasses, rebuilt from the JSON that ``asdict`` made of them."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from enum import Enum
from typing import Any, Literal, TypeVar, Union, cast, get_args, get_origin

from sparsegate.contracts import JSON, GateResult

Record = TypeVar("Record")


def decode(record_type: type[Record], data: JSON) -> Record:
    """Rebuild a dataclass, with dataclasses, gate results, tuples, mappings, literals and unions with None inside it.

    Raises:
        ValueError: If a field is missing, unknown, or no value of its type.
    """
    if not isinstance(data, Mapping):
        raise ValueError(f"{record_type.__name__} must be an object, got {type(data).__name__}")
    hints = typing.get_type_hints(record_type)
    names = {entry.name for entry in fields(cast(Any, record_type))}
    if names != data.keys():
        raise ValueError(f"{record_type.__name__} needs exactly the fields {sorted(names)}, got {sorted(data)}")
    return record_type(**{name: _value(hints[name], value, name) for name, value in data.items()})


def _value(hint: Any, value: JSON, name: str) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return _one_of(arguments, value, name)
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise ValueError(f"{name} must be a list, got {value!r}")
        return tuple(_value(arguments[0], entry, name) for entry in value)
    if origin is Mapping or origin is dict:
        if not isinstance(value, Mapping):
            raise ValueError(f"{name} must be an object, got {value!r}")
        return {str(key): _value(arguments[1], entry, name) for key, entry in value.items()}
    if hint is GateResult:
        return GateResult.from_json(value)  # its verdict is derived again
    if is_dataclass(hint):
        return decode(cast("type[Any]", hint), value)
    if isinstance(hint, type) and issubclass(hint, Enum):
        return hint(value)
    fits = value in arguments if origin is Literal else hint is Any or _is_a(hint, value)
    if not fits:
        raise ValueError(f"{name} must be {hint}, got {value!r}")
    return float(value) if hint is float else value


def _one_of(choices: tuple[Any, ...], value: JSON, name: str) -> Any:
    if value is None and type(None) in choices:
        return None
    problems = []
    for choice in choices:
        if choice is not type(None):
            try:
                return _value(choice, value, name)
            except ValueError as error:
                problems.append(str(error))
    raise ValueError("; ".join(problems))


def _is_a(hint: Any, value: JSON) -> bool:
    if isinstance(value, bool) and hint is not bool:
        return False
    return isinstance(value, int | float) if hint is float else isinstance(value, hint)
