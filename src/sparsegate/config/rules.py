"""Rules of a configuration: their wording, and what checks them all."""

from __future__ import annotations

import math
import re
from dataclasses import fields, is_dataclass
from typing import Any, get_args
from urllib.parse import urlsplit

from sparsegate.contracts import Attack
from sparsegate.errors import ConfigError, did_you_mean


def collect(**problems: str | None) -> dict[str, str]:
    """Return the problems of the fields that have one."""
    return {name: problem for name, problem in problems.items() if problem}


def in_range(
    name: str, value: float, low: float, high: float, *, open_low: bool = False, open_high: bool = False
) -> str | None:
    """Say that a number is not finite or not in a range; None if it is."""
    above = value > low if open_low else value >= low
    below = value < high if open_high else value <= high
    if math.isfinite(value) and above and below:
        return None
    return f"{name} must be in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}, got {value:g}"


def at_least(name: str, value: int, low: int) -> str | None:
    """Say that a number is too low; None if it is not."""
    return None if value >= low else f"{name} must be at least {low}, got {value}"


def attacks_problem(attacks: tuple[Attack, ...]) -> str | None:
    """Say which attack is unknown, named twice or missing; None if all is well."""
    unknown = [attack for attack in attacks if attack not in get_args(Attack)]
    if unknown:
        return f"attacks got '{unknown[0]}'{did_you_mean(unknown[0], get_args(Attack))}"
    return None if len(set(attacks)) == len(attacks) > 0 else "attacks must name at least one attack, and each once"


def notify_url_problem(url: str) -> str | None:
    """Say why a webhook's URL can't be used, without repeating what may be a secret; None if it can."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or re.search(r"\s", url):
        return "url must be an http:// or https:// URL, or env:NAME"
    if parts.username or parts.password:
        return "url must not hold a user or password; put the whole URL into the environment and name it: env:NAME"
    return None


def check_rules(config: Any) -> None:
    """Check the rules of a configuration made in Python or on the command line.

    Raises:
        ConfigError: With every broken rule.
    """
    problems: list[str] = []

    def walk(part: Any, prefix: str) -> None:
        rules = part.problems() if hasattr(part, "problems") else {}
        problems.extend(f"{prefix}{text}" for text in rules.values())
        for entry in fields(part):
            value = getattr(part, entry.name)
            if is_dataclass(value):
                walk(value, f"{prefix}{entry.name}.")

    walk(config, "")
    if problems:
        raise ConfigError(problems)
