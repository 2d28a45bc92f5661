"""The delta file: what training changed, and nothing else, as safetensors.

Metadata: ``format``, ``base_digest``, ``supports`` (JSON: parameter name to kind, shape and map) and ``manifest``
(JSON). Tensors for each parameter: ``NAME::ids``, ``NAME::old`` and ``NAME::new``. Because the old values are stored,
applying is checked bit for bit against the model at hand, and reverting is exact.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from sparsegate.contracts import JSON, SupportKind, canonical_json
from sparsegate.errors import DeltaError
from sparsegate.files import atomic_path
from sparsegate.sparse.layers import sparse_layers
from sparsegate.sparse.layouts import LAYOUTS
from sparsegate.sparse.support import SparseSupport
from sparsegate.sparse.targets import MapKind

FORMAT = "sparsegate-delta-1"


@dataclass(frozen=True)
class DeltaEntry:
    """The change of one weight, all of it in terms of the weight as stored.

    Args:
        kind: ``element``, ``column``, ``row`` or ``block``.
        shape: Shape of the weight: (out, in), or (in, out) of a ``conv1d`` or ``embedding``.
        ids: Ascending indices of the chosen units, int32 or int64.
        old: Entries before training, in the layout's shape, dtype of the weight.
        new: Entries after training, same shape and dtype.
        map_kind: What the weight is of: ``linear``, ``conv1d`` or ``embedding``; exports depend on it.
    """

    kind: SupportKind
    shape: tuple[int, int]
    ids: Tensor
    old: Tensor
    new: Tensor
    map_kind: MapKind = "linear"


@dataclass(frozen=True)
class Delta:
    """All changes of one training run.

    Args:
        entries: Parameter name (as in the base model's state dict) to its change.
        base_digest: Digest of the base model they belong to.
        manifest: How they were made (JSON values).
    """

    entries: Mapping[str, DeltaEntry]
    base_digest: str
    manifest: Mapping[str, JSON]


def extract_delta(model: nn.Module, *, base_digest: str, manifest: Mapping[str, JSON]) -> Delta:
    """Read the delta off a model with sparse layers.

    Raises:
        DeltaError: If a trained value is not finite.
    """
    entries: dict[str, DeltaEntry] = {}
    for name, layer in sparse_layers(model).items():
        support = layer.support
        new = support.gather(layer.weight)
        if not bool(torch.isfinite(new).all()):
            raise DeltaError(f"{name}.weight holds NaN or infinity after training; lower training.learning_rate")
        rows, columns = support.shape
        entries[f"{name}.weight"] = DeltaEntry(
            support.kind, (rows, columns), support.ids, support.originals, new, layer.map_kind
        )
    if not entries:
        raise DeltaError("the model has no sparse layers; train it first")
    return Delta(entries, base_digest, manifest)


def write_delta(delta: Delta, path: Path) -> None:
    """Write a delta file, whole or not at all."""
    tensors: dict[str, Tensor] = {}
    for name, entry in delta.entries.items():
        for part in ("ids", "old", "new"):
            tensors[f"{name}::{part}"] = getattr(entry, part).detach().cpu().contiguous()
    metadata = {
        "format": FORMAT,
        "base_digest": delta.base_digest,
        "supports": canonical_json(
            {name: {"kind": e.kind, "shape": list(e.shape), "map": e.map_kind} for name, e in delta.entries.items()}
        ),
        "manifest": canonical_json(dict(delta.manifest)),
    }
    with atomic_path(path) as temporary:
        save_file(tensors, temporary, metadata=metadata)
        _sort_metadata(temporary)


def _sort_metadata(path: Path) -> None:
    """Put the metadata in order in place: safetensors writes it in random order, and equal deltas are equal files."""
    with path.open("r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode().ljust(size)
        assert len(text) == size, "reordering keeps the length"
        file.seek(8)
        file.write(text)


def read_delta(path: Path) -> Delta:
    """Read and check a delta file.

    Raises:
        DeltaError: If it is not a whole delta file of this format.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata: dict[str, str] = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise DeltaError(
                    f"{path} is not a delta file of format {FORMAT}, but {metadata.get('format', 'unmarked')}"
                )
            entries: dict[str, DeltaEntry] = {}
            for name, support in {**json.loads(metadata["supports"])}.items():
                ids, old, new = (file.get_tensor(f"{name}::{part}") for part in ("ids", "old", "new"))
                rows, columns = support["shape"]
                # absent in deltas made when only linear maps could be trained
                map_kind = support.get("map", "linear")
                entries[name] = DeltaEntry(support["kind"], (rows, columns), ids, old, new, map_kind)
            manifest: dict[str, Any] = {**json.loads(metadata["manifest"])}
            base_digest = metadata["base_digest"]
    except FileNotFoundError:
        raise DeltaError(f"{path} does not exist") from None
    except (SafetensorError, OSError, KeyError, ValueError, TypeError) as error:
        if isinstance(error, DeltaError):
            raise
        raise DeltaError(f"{path} is damaged: {error}") from None
    for name, entry in entries.items():
        _check_entry(name, entry)
    return Delta(entries, base_digest, manifest)


def _check_entry(name: str, entry: DeltaEntry) -> None:
    if entry.kind not in LAYOUTS:
        raise DeltaError(f"{name}: unknown support kind '{entry.kind}'")
    if entry.map_kind not in get_args(MapKind):
        raise DeltaError(f"{name}: unknown kind of map '{entry.map_kind}'")
    if entry.ids.dtype not in (torch.int32, torch.int64):
        raise DeltaError(f"{name}: ids must be whole numbers (int32 or int64), got {entry.ids.dtype}")
    layout = LAYOUTS[entry.kind]
    limit, shape = layout.num_units(entry.shape), layout.entries_shape(entry.shape, len(entry.ids))
    if entry.ids.ndim != 1 or tuple(entry.old.shape) != shape or entry.old.shape != entry.new.shape:
        raise DeltaError(f"{name}: ids, old and new do not fit each other")
    ids = entry.ids.long()
    if len(ids) == 0 or int(ids[0]) < 0 or int(ids[-1]) >= limit or not bool((ids[1:] > ids[:-1]).all()):
        raise DeltaError(f"{name}: ids must be ascending and in [0, {limit})")
    if entry.old.dtype != entry.new.dtype or not bool(torch.isfinite(entry.new).all()):
        raise DeltaError(f"{name}: new values must be finite and of the old values' dtype")


def apply_delta(model: nn.Module, delta: Delta) -> None:
    """Write a delta's new values into a model, in place.

    Raises:
        DeltaError: If the model is not the delta's base; then nothing is changed.
    """
    _swap(model, delta, before="old", after="new")


def revert_delta(model: nn.Module, delta: Delta) -> None:
    """Take a delta back: the model is its base again, bit for bit.

    Raises:
        DeltaError: If the delta is not applied; then nothing is changed.
    """
    _swap(model, delta, before="new", after="old")


def _swap(model: nn.Module, delta: Delta, *, before: str, after: str) -> None:
    weights = dict(model.named_parameters())
    plan: list[tuple[SparseSupport, Tensor, Tensor]] = []
    for name, entry in delta.entries.items():
        weight = weights.get(name)
        if weight is None or tuple(weight.shape) != entry.shape:
            found = "none" if weight is None else str(tuple(weight.shape))
            raise DeltaError(
                f"the delta changes {name} of shape {entry.shape}; the model has {found}: it belongs to another base"
            )
        support = SparseSupport(entry.kind, entry.ids.to(weight.device), weight)
        if not torch.equal(support.originals, getattr(entry, before).to(weight.device)):
            raise DeltaError(
                f"{name} does not hold the delta's {before} values; is this the base it was trained on, untouched?"
            )
        plan.append((support, getattr(entry, after), weight))
    for support, values, target in plan:
        support.scatter(values.to(target.device), target)
