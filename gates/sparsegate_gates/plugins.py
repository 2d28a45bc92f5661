"""What other packages add through entry points; a name that is taken is refused, never replaced."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.metadata import entry_points
from typing import Any

from sparsegate.errors import ConfigError, did_you_mean


def with_plugins(builtin: Mapping[str, Any], *, group: str, kind: str) -> dict[str, Any]:
    """Return the built-in table and everything that installed packages add to it.

    Args:
        builtin: Name to object.
        group: Entry point group.
        kind: What the objects are called in messages.

    Raises:
        ConfigError: If a name is taken or an entry point can't be loaded.
    """
    found = dict(builtin)
    for entry in entry_points(group=group):
        if entry.name in found:
            raise ConfigError(
                [f"{kind} '{entry.name}' is given twice (again by {entry.value}); uninstall or rename one"]
            )
        try:
            found[entry.name] = entry.load()
        except Exception as error:
            raise ConfigError([f"{kind} '{entry.name}' ({entry.value}) can't be loaded: {error}"]) from error
    return found


def look_up(name: str, builtin: Mapping[str, Any], *, group: str, kind: str) -> Any:
    """Return the object of a name.

    Raises:
        ConfigError: If there is none, listing the names that there are.
    """
    found = with_plugins(builtin, group=group, kind=kind)
    if name not in found:
        raise ConfigError([f"unknown {kind} '{name}'{did_you_mean(name, found)}"])
    return found[name]
