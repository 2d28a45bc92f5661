"""Which gates must pass, with which thresholds: policies, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, make_dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from sparsegate.config import load
from sparsegate.contracts import Gate, canonical_json
from sparsegate.errors import ConfigError, did_you_mean
from sparsegate.files import sha256_bytes
from sparsegate_gates import all_gates

_PACKAGE = "sparsegate_gates.policies"


@dataclass(frozen=True)
class Policy:
    """The gates a model must pass.

    Args:
        name: Name of the shipped policy, or the file's name without its ending.
        sha256: Digest of every threshold, defaults included.
        gates: Gate name to its settings, in the order in which they run.
    """

    name: str
    sha256: str
    gates: Mapping[str, Any]


def shipped_policies() -> tuple[str, ...]:
    """Return the names of the policies that come with sparsegate."""
    files = (entry.name for entry in resources.files(_PACKAGE).iterdir())
    return tuple(sorted(name[: -len(".yaml")] for name in files if name.endswith(".yaml")))


def load_policy(name_or_path: str, *, gates: Mapping[str, type[Gate]] | None = None) -> Policy:
    """Read a policy.

    Args:
        name_or_path: A shipped policy's name, or a YAML file.
        gates: Gates that a policy may ask; None takes the built-in ones and those of installed packages.

    Raises:
        ConfigError: With every problem, each with file and line; also if no gate is asked.
    """
    known = all_gates() if gates is None else dict(gates)
    path = _find(name_or_path)
    asked = _asked(load(path, _policy_type(known)), path)
    digest = sha256_bytes(canonical_json({name: asdict(settings) for name, settings in asked.items()}).encode())
    return Policy(name=path.stem, sha256=digest, gates=asked)


def _find(name_or_path: str) -> Path:
    shipped = shipped_policies()
    if name_or_path in shipped:
        # a package folder is a real folder: sparsegate is never run from a zip file
        return Path(str(resources.files(_PACKAGE) / f"{name_or_path}.yaml"))
    if name_or_path.endswith((".yaml", ".yml")):
        return Path(name_or_path)
    raise ConfigError([f"unknown policy '{name_or_path}'{did_you_mean(name_or_path, shipped)}; or give a .yaml file"])


def _policy_type(gates: Mapping[str, type[Gate]]) -> type[Any]:
    """Build the dataclass of a policy file: one optional block of settings for each gate."""
    return make_dataclass(
        "PolicyFile",
        [(name, gate.settings | None, field(default=None)) for name, gate in gates.items()],
        frozen=True,
    )


def _asked(policy_file: Any, path: Path) -> dict[str, Any]:
    asked = {name: settings for name, settings in vars(policy_file).items() if settings is not None}
    if not asked:
        raise ConfigError([f"{path}: asks no gate, so everything would pass; ask at least one"])
    return asked
