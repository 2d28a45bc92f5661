"""Reads configuration files: every error is reported at once, with file and line."""

from __future__ import annotations

import types
import typing
from collections.abc import Mapping
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin

import yaml

from sparsegate.config import RunConfig
from sparsegate.errors import ConfigError, did_you_mean


def shipped_config(name_or_path: str) -> Path:
    """Return the file of a configuration: a path, or the name of one that ships with sparsegate.

    Raises:
        ConfigError: If there is no such configuration.
    """
    if name_or_path.endswith((".yaml", ".yml", ".json")):
        return Path(name_or_path)
    shipped = {path.stem: path for path in Path(__file__).with_name("configs").glob("*.yaml")}
    if name_or_path not in shipped:
        raise ConfigError(
            [f"unknown configuration '{name_or_path}'{did_you_mean(name_or_path, shipped)}, or a .yaml file"]
        )
    return shipped[name_or_path]


def load(path: Path, config_type: type[Any] = RunConfig) -> Any:
    """Read a YAML file into a configuration dataclass.

    Args:
        path: The YAML file.
        config_type: Dataclass to build; nested dataclasses, tuples, mappings, literals and unions with None are
            understood.

    Raises:
        ConfigError: With every unknown key, wrong type and broken rule, each with file and line.
    """
    try:
        node = yaml.compose(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except FileNotFoundError:
        raise ConfigError([f"{path}: no such configuration file"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: can't be read: {error}"]) from None
    except yaml.YAMLError as error:
        raise ConfigError([f"{path}: not YAML: {' '.join(str(error).split())}"]) from None
    reader = _Reader(path)
    value = reader.dataclass(node, config_type, "") if node is not None else config_type()
    if reader.problems:
        raise ConfigError(reader.problems)
    return value


_NODE_NAMES = {yaml.ScalarNode: "single value", yaml.SequenceNode: "list", yaml.MappingNode: "mapping"}


class _Reader:
    """Turns YAML nodes into values of the promised types, collecting problems on the way."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[str] = []

    def report(self, node: yaml.Node, text: str) -> None:
        self.problems.append(f"{self.path}:{node.start_mark.line + 1}: {text}")

    def dataclass(self, node: yaml.Node, wanted: type[Any], prefix: str) -> Any:
        if not isinstance(node, yaml.MappingNode):
            self.report(node, f"{prefix.rstrip('.') or 'the file'} must be a mapping of fields")
            return None
        hints = typing.get_type_hints(wanted)
        known = {entry.name: entry for entry in fields(wanted)}
        values: dict[str, Any] = {}
        lines: dict[str, yaml.Node] = {}
        before = len(self.problems)
        for key_node, value_node in node.value:
            key = str(key_node.value)
            if key not in known:
                self.report(key_node, f"unknown key '{prefix}{key}'{did_you_mean(key, known)}")
            elif key in values:
                self.report(key_node, f"'{prefix}{key}' stands twice; keep one")
            else:
                values[key] = self.value(value_node, hints[key], f"{prefix}{key}")
                lines[key] = key_node
        for name, entry in known.items():
            if name not in values and entry.default is MISSING and entry.default_factory is MISSING:
                self.report(node, f"'{prefix}{name}' is missing")
        if len(self.problems) > before:
            return None
        built = wanted(**values)
        rules: Mapping[str, str] = built.problems() if hasattr(built, "problems") else {}
        for name, text in rules.items():
            self.report(lines.get(name, node), f"{prefix}{text}")
        return built

    def value(self, node: yaml.Node, hint: Any, name: str) -> Any:
        """Read one value; a problem is reported and None returned."""
        if is_dataclass(hint):
            return self.dataclass(node, typing.cast("type[Any]", hint), f"{name}.")
        origin, arguments = get_origin(hint), get_args(hint)
        if origin in (Union, types.UnionType):
            if isinstance(node, yaml.ScalarNode) and node.tag == "tag:yaml.org,2002:null":
                return None
            words = [word for kind in arguments if get_origin(kind) is Literal for word in get_args(kind)]
            if words and isinstance(node, yaml.ScalarNode):
                return node.value if node.value in words else self.number_or(words, node, name)
            return self.value(node, next(kind for kind in arguments if kind is not type(None)), name)
        if origin is tuple:
            if not isinstance(node, yaml.SequenceNode):
                return self._wrong(node, name, "a list")
            return tuple(self.value(item, arguments[0], f"{name}[{i}]") for i, item in enumerate(node.value))
        if origin in (dict, Mapping):
            if not isinstance(node, yaml.MappingNode):
                return self._wrong(node, name, "a mapping")
            return {str(key.value): self.value(item, arguments[1], f"{name}.{key.value}") for key, item in node.value}
        if not isinstance(node, yaml.ScalarNode):
            return self._wrong(node, name, "a single value")
        return self.scalar(node, hint, name)

    def number_or(self, words: list[str], node: yaml.ScalarNode, name: str) -> float | None:
        try:
            return float(node.value)
        except ValueError:
            self._wrong(node, name, f"a number or {' or '.join(words)}")
            return None

    def scalar(self, node: yaml.ScalarNode, hint: Any, name: str) -> Any:
        if get_origin(hint) is Literal:
            choices = [str(choice) for choice in get_args(hint)]
            if node.value in choices:
                return node.value
            self.report(node, f"{name} got '{node.value}'{did_you_mean(str(node.value), choices)}")
            return None
        tag = node.tag.rsplit(":", 1)[-1]
        if hint is bool:
            return (
                node.value.lower() in {"true", "yes", "on"}
                if tag == "bool"
                else self._wrong(node, name, "true or false")
            )
        if hint is int:
            try:  # YAML 1.1 also takes 1:30 and 010 for whole numbers
                return int(node.value, 0) if tag == "int" else self._wrong(node, name, "a whole number")
            except ValueError:
                return self._wrong(node, name, "a whole number")
        if hint is float:
            try:  # YAML 1.1 reads 1e-4 as text
                return float(node.value) if tag in {"int", "float", "str"} else self._wrong(node, name, "a number")
            except ValueError:
                return self._wrong(node, name, "a number")
        return node.value if tag != "null" else self._wrong(node, name, "text")

    def _wrong(self, node: yaml.Node, name: str, wanted: str) -> None:
        got = f"'{node.value}'" if isinstance(node, yaml.ScalarNode) else f"a {_NODE_NAMES[type(node)]}"
        self.report(node, f"{name} must be {wanted}, got {got}")
