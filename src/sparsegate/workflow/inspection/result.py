"""What was found in a delta: where its mask lies, how far its weights moved, what it shares with another delta."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from sparsegate.contracts import JSON, SupportKind
from sparsegate.errors import DeltaError
from sparsegate.sparse.compose import Overlap, overlap
from sparsegate.sparse.delta import Delta, DeltaEntry, read_delta

DELTA_IN_RUN = Path("train", "delta.safetensors")
_LAYER = re.compile(r"\.(\d+)\.")  # the first number in a parameter's name is its decoder layer
_NUMBER = re.compile(r"\b\d+\b")
# as data flows; a delta file names its weights in alphabetical order
_ORDER = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


@dataclass(frozen=True)
class WeightChange:
    """What a delta does to one weight.

    Args:
        name: Name of the parameter.
        layer: Index of its decoder layer; None outside the layers, as for embeddings.
        module: Name of the map inside the layer; numbers, as those of experts, are ``*``.
        support: Kind of units that were chosen.
        dtype: Type of the weight.
        trained: Entries in the mask.
        total: Entries of the weight.
        moved: Entries of the mask whose value has changed.
        change_norm: Euclidean norm of the change.
        trained_norm: Euclidean norm of the trained entries before.
    """

    name: str
    layer: int | None
    module: str
    support: SupportKind
    dtype: str
    trained: int
    total: int
    moved: int
    change_norm: float
    trained_norm: float


@dataclass(frozen=True)
class Part:
    """Several weights taken together: a layer, a module of a layer, or all."""

    trained: int
    total: int
    relative_change: float | None

    @property
    def density(self) -> float:
        return self.trained / self.total


@dataclass(frozen=True)
class Inspection:
    """What ``sparsegate inspect`` tells.

    Args:
        path: The delta file.
        file_bytes: Its size.
        base_digest: Digest of the base model that it belongs to.
        manifest: How it was made, as its file says.
        weights: What it does to each weight, in the file's order.
        against: The file it was compared with, or None.
        overlap: What both have in common, or None.
    """

    path: Path
    file_bytes: int
    base_digest: str
    manifest: Mapping[str, JSON]
    weights: tuple[WeightChange, ...]
    against: Path | None = None
    overlap: Overlap | None = None

    @property
    def layers(self) -> list[int | None]:
        """Layers that are trained, from the bottom; what lies outside the layers comes last."""
        return sorted({weight.layer for weight in self.weights}, key=lambda layer: (layer is None, layer))

    @property
    def modules(self) -> list[str]:
        """Modules in the order in which data flows through those that Llama and its like have, then by name."""
        places = {weight.module: (weight.layer is None, *_place(weight.module)) for weight in self.weights}
        return sorted(places, key=lambda module: places[module])

    def part(self, *, layer: int | None, module: str | None = None) -> Part | None:
        """Return a layer, or a module of it; None if nothing of it is trained."""
        found = [w for w in self.weights if w.layer == layer and module in (None, w.module)]
        return join(found) if found else None

    def largest_changes(self, count: int) -> list[WeightChange]:
        """Return the weights that moved furthest for their size, the furthest first."""
        return sorted(self.weights, key=lambda weight: -(relative_change([weight]) or 0.0))[:count]

    def to_json(self) -> dict[str, JSON]:
        weights = [
            {**asdict(w), "density": w.trained / w.total, "relative_change": relative_change([w])} for w in self.weights
        ]
        return {
            "path": str(self.path),
            "file_bytes": self.file_bytes,
            "base_digest": self.base_digest,
            "manifest": dict(self.manifest),
            "all": _part_json(join(self.weights)),
            "layers": [{"layer": layer, **_part_json(self.part(layer=layer))} for layer in self.layers],
            "weights": weights,
            "against": None if self.against is None else str(self.against),
            "overlap": None if self.overlap is None else asdict(self.overlap),
        }


def join(weights: Sequence[WeightChange]) -> Part:
    """Take weights together."""
    return Part(sum(w.trained for w in weights), sum(w.total for w in weights), relative_change(weights))


def relative_change(weights: Iterable[WeightChange]) -> float | None:
    """Return the norm of the change over that of the trained entries before; None if these were all zero."""
    found = list(weights)
    before = sum(weight.trained_norm**2 for weight in found) ** 0.5
    return sum(weight.change_norm**2 for weight in found) ** 0.5 / before if before else None


def inspect_delta(source: Path, *, against: Path | None = None) -> Inspection:
    """Read a delta.

    Args:
        source: A delta file, the folder of a run, or a folder that holds ``delta.safetensors``.
        against: Another one of the same base, to compare with.

    Raises:
        DeltaError: If there is none, it is damaged, it changes nothing, or the two have different bases.
    """
    path = find_delta(source)
    delta = read_delta(path)
    if not delta.entries:
        raise DeltaError(f"{path} changes no weight")
    other = None if against is None else find_delta(against)
    return Inspection(
        path=path,
        file_bytes=path.stat().st_size,
        base_digest=delta.base_digest,
        manifest=delta.manifest,
        weights=tuple(_examine(name, entry) for name, entry in delta.entries.items()),
        against=other,
        overlap=None if other is None else _overlap(delta, path, other),
    )


def find_delta(source: Path) -> Path:
    """Return the delta file that a path stands for.

    Raises:
        DeltaError: If there is none.
    """
    if source.is_file():
        return source
    if not source.exists():
        raise DeltaError(f"{source} does not exist; give a delta file or the folder of a run, such as runs/KEY")
    for path in (source / DELTA_IN_RUN, source / DELTA_IN_RUN.name):
        if path.is_file():
            return path
    if (source / "manifest.json").is_file():
        raise DeltaError(f"{source} is a run that has no delta yet; give the command that started it again")
    raise DeltaError(f"{source} is not the folder of a run: it holds neither {DELTA_IN_RUN} nor {DELTA_IN_RUN.name}")


def _overlap(delta: Delta, path: Path, other: Path) -> Overlap:
    try:
        return overlap([delta, read_delta(other)])[0]
    except DeltaError as error:
        raise DeltaError(f"{path} against {other}: {error}") from None


def _examine(name: str, entry: DeltaEntry) -> WeightChange:
    old, new = entry.old.double(), entry.new.double()
    change_norm, trained_norm = (float(torch.linalg.vector_norm(values)) for values in (new - old, old))
    if not math.isfinite(trained_norm):
        raise DeltaError(f"{name}: the old values hold NaN or infinity; the delta or its base is damaged")
    found = _LAYER.search(name)
    module = name[found.end() :] if found else name
    return WeightChange(
        name=name,
        layer=int(found[1]) if found else None,
        module=_NUMBER.sub("*", module.removesuffix(".weight")),
        support=entry.kind,
        dtype=str(entry.old.dtype).removeprefix("torch."),
        trained=entry.new.numel(),
        total=entry.shape[0] * entry.shape[1],
        moved=int((entry.new != entry.old).sum()),
        change_norm=change_norm,
        trained_norm=trained_norm,
    )


def _place(module: str) -> tuple[int, str]:
    last = module.rpartition(".")[2]
    return _ORDER.index(last) if last in _ORDER else len(_ORDER), module


def _part_json(part: Part | None) -> dict[str, JSON]:
    assert part is not None
    return {**asdict(part), "density": part.density}
