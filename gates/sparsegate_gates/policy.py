"""Which gates must pass, with which thresholds: policies, read and checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, make_dataclass
from functools import partial
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_type_hints

import yaml

from sparsegate.config_file import load
from sparsegate.contracts import JSON, Gate, canonical_json
from sparsegate.errors import ConfigError, did_you_mean
from sparsegate.files import sha256_bytes
from sparsegate.signing import key_id, load_public_key
from sparsegate_gates import all_gates

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

_PACKAGE = "sparsegate_gates.policies"


@dataclass(frozen=True)
class Policy:
    """The gates a model must pass.

    Args:
        name: Name of the shipped policy, or the file's name without its ending.
        sha256: Digest of every threshold, inherited ones and defaults included, and of the approvers' keys.
        gates: Gate name to its settings, in the order in which they run.
        approvers: Name to public key of those who may sign waivers; nobody may where there is none.
    """

    name: str
    sha256: str
    gates: Mapping[str, Any]
    approvers: Mapping[str, Ed25519PublicKey] = field(default_factory=dict)

    def decides(self) -> dict[str, JSON]:
        """Return what ``sha256`` is the digest of: every gate's thresholds, and the approvers' key ids if there are."""
        return _decides(self.gates, self.approvers)


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
    return _load(_find(name_or_path), known, ())


def _load(path: Path, known: Mapping[str, type[Gate]], children: tuple[Path, ...]) -> Policy:
    """Read a policy that the ``children`` extend, the nearest last."""
    parent = _parent(path, known, children)
    file = load(path, _policy_type(known, parent))
    asked = _asked(file, path, parent, known)
    keys = _keys(file.approvers, path.parent)
    approvers = {**(parent.approvers if parent else {}), **keys}
    digest = sha256_bytes(canonical_json(_decides(asked, approvers)).encode())
    return Policy(path.stem, digest, asked, approvers)


def _decides(gates: Mapping[str, Any], approvers: Mapping[str, Ed25519PublicKey]) -> dict[str, JSON]:
    thresholds: dict[str, JSON] = {name: asdict(settings) for name, settings in gates.items()}
    return thresholds | ({"approvers": {name: key_id(key) for name, key in approvers.items()}} if approvers else {})


def _parent(path: Path, known: Mapping[str, type[Gate]], children: tuple[Path, ...]) -> Policy | None:
    """Return the one policy that a policy extends.

    Raises:
        ConfigError: If that one can't be read, or extends this one.
    """
    wanted = _extends(path)
    if wanted is None:
        return None
    # a path is meant from where the policy file is
    parent = wanted if wanted in shipped_policies() or not _is_file_name(wanted) else str(path.parent / wanted)
    found = _find(parent)
    if found.resolve() in (above.resolve() for above in (*children, path)):
        raise ConfigError([f"{path}: extends '{wanted}', which extends this one; one of them must stand alone"])
    return _load(found, known, (*children, path))


def _extends(path: Path) -> str | None:
    try:
        text = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return None  # reading the policy says what is wrong
    found = text.get("extends") if isinstance(text, dict) else None
    return found if isinstance(found, str) else None


def _is_file_name(name_or_path: str) -> bool:
    return name_or_path.endswith((".yaml", ".yml"))


def _keys(files: Mapping[str, str], folder: Path) -> dict[str, Ed25519PublicKey]:
    return {name: load_public_key(folder / file) for name, file in files.items()}


def _find(name_or_path: str) -> Path:
    shipped = shipped_policies()
    if name_or_path in shipped:
        # a package folder is a real folder: sparsegate is never run from a zip file
        return Path(str(resources.files(_PACKAGE) / f"{name_or_path}.yaml"))
    if _is_file_name(name_or_path):
        return Path(name_or_path)
    raise ConfigError([f"unknown policy '{name_or_path}'{did_you_mean(name_or_path, shipped)}; or give a .yaml file"])


def _policy_type(gates: Mapping[str, type[Gate]], parent: Policy | None) -> type[Any]:
    """Build the dataclass of a policy file: one optional block of settings for each gate."""
    inherited = parent.gates if parent else {}
    blocks = [
        (name, _block_type(gate.settings, inherited.get(name)) | None, field(default=None))
        for name, gate in gates.items()
    ]
    others: list[Any] = [
        ("extends", str | None, field(default=None)),
        ("approvers", Mapping[str, str], field(default_factory=dict)),
    ]
    return make_dataclass("PolicyFile", [*others, *blocks], frozen=True)


def _block_type(settings: type[Any], inherited: Any) -> type[Any]:
    """Return the settings class with the inherited thresholds as defaults; whoever changes one gives a reason."""
    if inherited is None:
        return settings
    hints = get_type_hints(settings)
    defaults = [
        (entry.name, hints[entry.name], field(default_factory=partial(getattr, inherited, entry.name)))
        for entry in fields(settings)
        if entry.name != "reason"
    ]
    reason = ("reason", str, field())
    return make_dataclass(settings.__name__, [reason, *defaults], bases=(settings,), frozen=True, kw_only=True)


def _asked(policy_file: Any, path: Path, parent: Policy | None, gates: Mapping[str, type[Gate]]) -> dict[str, Any]:
    """Return each gate's settings: the file's own block, else the inherited one."""
    asked: dict[str, Any] = {}
    for name, gate in gates.items():
        own = getattr(policy_file, name)
        if own is not None:
            asked[name] = gate.settings(**{entry.name: getattr(own, entry.name) for entry in fields(gate.settings)})
        elif parent and name in parent.gates:
            asked[name] = parent.gates[name]
    if not asked:
        raise ConfigError([f"{path}: asks no gate, so everything would pass; ask at least one"])
    return asked
