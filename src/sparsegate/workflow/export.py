"""Deltas from runs, files and the registry, written for other programs: one, or several of one base together."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, NamedTuple

from sparsegate.config import ModelConfig, RegistryConfig, RunConfig
from sparsegate.config_file import load as load_config
from sparsegate.contracts import JSON
from sparsegate.errors import DeltaError, EvidenceError, UsageError
from sparsegate.models import BaseModel, hub, load
from sparsegate.registry.package import SPEC_FILE, read_package
from sparsegate.registry.reachability import check_tracking
from sparsegate.sparse.compose import Conflict, combine
from sparsegate.sparse.delta import Delta, read_delta, write_delta
from sparsegate.sparse.export import check_base, check_new_folder, merged, to_peft_lora, to_peft_shira
from sparsegate.workflow.identity import public_key_of
from sparsegate.workflow.inspection.result import DELTA_IN_RUN, find_delta
from sparsegate.workflow.run import resolve_base
from sparsegate.workflow.verification import find_version, verify_version

Format = Literal["merged", "lora", "shira", "delta"]


@dataclass(frozen=True)
class Export:
    """What ``sparsegate export`` wrote.

    Args:
        to: The folder, or the delta file.
        format: Its format.
        sources: What it was made of.
        base_digest: Digest of the base model.
        bytes: Size of what was written.
    """

    to: Path
    format: Format
    sources: tuple[str, ...]
    base_digest: str
    bytes: int

    def to_json(self) -> dict[str, JSON]:
        return {**asdict(self), "to": str(self.to)}

    def render(self) -> str:
        made_of = " and ".join(self.sources)
        return f"{self.to}: {self.format} of {made_of}, {self.bytes / 1e6:,.2f} MB, base {self.base_digest[:12]}"


class _Source(NamedTuple):
    delta: Delta
    base: ModelConfig | None  # as its run's configuration or its package names it


def export(
    sources: Sequence[str],
    to: Path,
    *,
    to_format: Format,
    conflict: Conflict = "error",
    base: str | None = None,
    public_key: Path | None = None,
    tracking_uri: str = RegistryConfig.tracking_uri,
) -> Export:
    """Write one or several deltas in another program's format.

    Args:
        sources: Delta files, folders of runs, ``models:/NAME/3`` or ``models:/NAME@ALIAS``; versions must verify.
        to: Folder to make, or for ``delta`` the file.
        to_format: What to write.
        conflict: What to do where two change the same entry.
        base: Source of the base model; None takes it from the run or the version. Its digest must be the delta's.
        public_key: PEM file of the key that must have signed the versions; None takes it from SPARSEGATE_SIGNING_KEY,
            and without that does not ask who signed.
        tracking_uri: Tracking URI of the versions.

    Raises:
        UsageError: If ``to`` is in use, a source does not exist or the base is not known.
        DeltaError: If a delta is damaged, belongs to another base or does not fit the format.
        EvidenceError: If a version does not verify.
    """
    if to_format == "delta" and to.exists():
        raise UsageError(f"{to} exists; choose a new file")
    if to_format != "delta":
        check_new_folder(to)
    found = [_open(source, tracking_uri, public_key) for source in sources]
    delta = combine([one.delta for one in found], conflict=conflict) if len(found) > 1 else found[0].delta
    if to_format == "delta":
        write_delta(delta, to)
    else:
        model = ModelConfig(source=base) if base else next((one.base for one in found if one.base), None)
        _write(delta, to, to_format, _find_base(delta, model), trust=model is not None and model.trust_remote_code)
    files = [to] if to.is_file() else [path for path in to.rglob("*") if path.is_file()]
    return Export(to, to_format, tuple(sources), delta.base_digest, sum(path.stat().st_size for path in files))


def _open(source: str, tracking_uri: str, public_key: Path | None) -> _Source:
    with tempfile.TemporaryDirectory() as scratch:
        registered = source.startswith("models:/")
        place = _download(source, tracking_uri, public_key, Path(scratch)) if registered else Path(source)
        path = find_delta(place)
        delta = read_delta(path)
        if not delta.entries:
            raise DeltaError(f"{source} changes no weight")
        return _Source(delta, _base_of(path))


def _download(source: str, tracking_uri: str, public_key: Path | None, folder: Path) -> Path:
    check_tracking(tracking_uri)
    name, number = find_version(source, tracking_uri)
    key = public_key_of(public_key)
    found = verify_version(tracking_uri, name, number, public_key=key, download_to=folder)
    if found.package is None or found.failed:
        raise EvidenceError(f"{source} can't be exported: {'; '.join(found.failed)}")
    return found.package


def _base_of(path: Path) -> ModelConfig | None:
    """Return the base model that the run or the package around a delta file names."""
    run = path.parent.parent
    if path == run / DELTA_IN_RUN and (run / "config.json").is_file():
        config: RunConfig = load_config(run / "config.json")
        return config.model
    if (path.parent / SPEC_FILE).is_file():
        spec = read_package(path.parent)
        return ModelConfig(spec.base_source, spec.base_sha256, trust_remote_code=spec.trust_remote_code)
    return None


def _find_base(delta: Delta, model: ModelConfig | None) -> BaseModel:
    if model is None:
        raise UsageError(f"no source names its base model; give the one of digest {delta.base_digest[:12]} with --base")
    base = resolve_base(RunConfig(model=model))
    check_base(delta.base_digest, base.digest)
    return base


def _write(delta: Delta, to: Path, to_format: Format, base: BaseModel, *, trust: bool) -> None:
    if to_format == "merged":
        dtype = str(next(iter(delta.entries.values())).old.dtype).removeprefix("torch.")
        model, _ = load(base.folder, dtype=dtype, trust_remote_code=trust)
        merged(base.folder, delta, to, model=model, base_digest=base.digest)
        return
    scheme, _, location = base.source.partition(":")
    name = hub.parse(location)[0] if scheme == "hf" else str(base.folder)
    (to_peft_lora if to_format == "lora" else to_peft_shira)(delta, to, base_source=name)
