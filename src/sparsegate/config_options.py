"""Options of the verbs that take a configuration: ``--config`` and the overrides of single fields."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsegate.errors import ExitCode
from sparsegate.options import PlainParser, parse_options

if TYPE_CHECKING:
    from sparsegate.config import RunConfig


def parse_config(
    verb: str,
    arguments: Sequence[str],
    *,
    flags: Mapping[str, str] | None = None,
    files: Mapping[str, str] | None = None,
) -> tuple[RunConfig, Any]:
    """Read ``--config`` and the overrides of single fields.

    Args:
        verb: Name of the verb.
        arguments: What the user gave.
        flags: Further options without a value, and what they do.
        files: Further options that take a file, and what they do.

    Raises:
        ConfigError: With every problem of the file.
        UsageError: For overrides that can't be used.
    """
    from jsonargparse import ArgumentParser

    from sparsegate.config import RunConfig, check_rules
    from sparsegate.config_file import load, shipped_config

    first = PlainParser(prog=f"sparsegate {verb}", add_help=False, allow_abbrev=False)
    first.add_argument("--config")
    first.add_argument("--json", action="store_true")
    first.add_argument("--print_config", action="store_true")
    for flag in flags or {}:
        first.add_argument(f"--{flag}", action="store_true")
    for file in files or {}:
        first.add_argument(f"--{file}", type=Path, metavar="FILE")
    options, overrides = first.parse_known_args(arguments)
    parser = ArgumentParser(prog=f"sparsegate {verb}", exit_on_error=False)
    parser.add_argument("--config", help="YAML file, or the name of a shipped one; options override its fields")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")
    parser.add_argument("--print_config", action="store_true", help="print the resolved configuration and stop")
    for flag, about in (flags or {}).items():
        parser.add_argument(f"--{flag}", action="store_true", help=about)
    for file, about in (files or {}).items():
        parser.add_argument(f"--{file}", metavar="FILE", help=about)
    parser.add_class_arguments(RunConfig, nested_key=None)
    if options.config is not None:
        parser.set_defaults(_flat(asdict(load(shipped_config(options.config)))))
    parsed = parse_options(
        parser,
        overrides,
        config_type=RunConfig,
        others={"config", "json", "print_config", *(flags or {}), *(files or {})},
    )
    built = parser.instantiate(parsed)
    config = RunConfig(**{name: getattr(built, name) for name in RunConfig.__dataclass_fields__})
    check_rules(config)
    if options.print_config:
        import yaml

        plain = json.loads(json.dumps(asdict(config)))
        yaml.safe_dump(plain, sys.stdout, sort_keys=False, allow_unicode=True)
        raise SystemExit(ExitCode.PASSED)
    return config, options


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return flat
