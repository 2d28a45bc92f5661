"""Options of the command line: one that can't be used is named in a line, with the one that was probably meant."""

from __future__ import annotations

import argparse
import re
import types
import typing
from collections.abc import Collection, Mapping, Sequence
from dataclasses import is_dataclass
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, Literal, NoReturn, Union, get_args, get_origin

from sparsegate.errors import UsageError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

# how jsonargparse words a value of the wrong type
_WRONG_VALUE = re.compile(r'Parser key "([^"]+)": .*(?:Got|Given) value: ?(.*)')
_KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}


class PlainParser(argparse.ArgumentParser):
    """A parser that raises where argparse would print its usage and end the process."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message}; see '{self.prog} --help'")


def parse_options(
    parser: ArgumentParser, arguments: Sequence[str], *, config_type: type[Any], others: Collection[str]
) -> Namespace:
    """Parse the options of a verb that sets the fields of a dataclass.

    Args:
        parser: Parser with ``exit_on_error`` off.
        arguments: What the user gave.
        config_type: The dataclass.
        others: Names of the verb's other options, without dashes.

    Raises:
        UsageError: With every unknown option, or else the first value that does not fit.
    """
    from jsonargparse import ArgumentError

    kinds = field_types(config_type)
    known = {"help", *kinds, *others}
    # also refuses abbreviations: an option that will be added would change what they mean
    given = [argument[2:].partition("=")[0] for argument in arguments if argument.startswith("--")]
    problems = [_unknown(name, known, parser.prog) for name in given if name not in known]
    if problems:
        raise UsageError("\n".join(problems))
    try:
        return parser.parse_args(list(arguments))
    except ArgumentError as error:
        raise UsageError(_in_plain_words(" ".join(str(error).split()), kinds, parser.prog)) from None


def field_types(config_type: type[Any], prefix: str = "") -> dict[str, Any]:
    """Return the dotted name and the type of each field of a dataclass; sections are named before their fields."""
    found: dict[str, Any] = {}
    for name, hint in typing.get_type_hints(config_type).items():
        found[f"{prefix}{name}"] = hint
        if is_dataclass(hint):
            found |= field_types(typing.cast("type[Any]", hint), f"{prefix}{name}.")
    return found


def _unknown(name: str, known: Collection[str], verb: str) -> str:
    close = get_close_matches(name, known, n=1)
    hint = f"did you mean '--{close[0]}'? " if close else ""
    return f"unknown option '--{name}'; {hint}'{verb} --help' lists all"


def _in_plain_words(text: str, kinds: Mapping[str, Any], verb: str) -> str:
    found = _WRONG_VALUE.fullmatch(text)
    if found and found[1] in kinds and (kind := _describe(kinds[found[1]])):
        return f"{found[1]} must be {kind}, got '{found[2]}'"
    return f"{text}; see '{verb} --help'"


def _describe(hint: Any) -> str | None:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        kinds = ["null" if argument is type(None) else _describe(argument) for argument in arguments]
        return " or ".join(kind for kind in kinds if kind) if all(kinds) else None
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}" if len(arguments) > 1 else f"{arguments[0]}"
    return "a list, such as [a, b]" if origin is tuple else _KINDS.get(hint)
