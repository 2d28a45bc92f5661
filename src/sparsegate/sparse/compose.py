"""Several deltas on one base: what they share, and their sum."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Literal, get_args

import torch
from torch import Tensor

from sparsegate.contracts import SupportKind
from sparsegate.errors import DeltaError, UsageError, did_you_mean
from sparsegate.sparse.delta import Delta, DeltaEntry
from sparsegate.sparse.support import SparseSupport

Conflict = Literal["error", "sum", "first", "mean"]

_UNIT_AXIS: dict[SupportKind, int] = {"element": 0, "row": 0, "column": 1}  # of old and new: where the ids run


@dataclass(frozen=True)
class Overlap:
    """What two deltas have in common.

    Args:
        first: Position of the first delta in the list.
        second: Position of the second.
        shared_entries: Entries that both change.
        share: Shared entries over the entries of the smaller delta, in [0, 1].
        sign_agreement: Share of the shared entries that both move the same way; None if there are none.
        relative_size: Euclidean norm of the second's change over that of the first; None if the first changes nothing.
    """

    first: int
    second: int
    shared_entries: int
    share: float
    sign_agreement: float | None
    relative_size: float | None


def as_elements(entry: DeltaEntry) -> DeltaEntry:
    """Return the same change as single entries, in ascending order."""
    if entry.kind == "element":
        return entry
    rows, columns = entry.shape
    index_type = torch.int32 if rows * columns < 2**31 else torch.int64
    places = torch.arange(rows * columns, dtype=index_type, device=entry.ids.device).view(rows, columns)
    ids, order = SparseSupport(entry.kind, entry.ids, places).originals.flatten().sort()
    return replace(entry, kind="element", ids=ids, old=entry.old.flatten()[order], new=entry.new.flatten()[order])


def overlap(deltas: Sequence[Delta]) -> tuple[Overlap, ...]:
    """Compare every pair of deltas.

    Args:
        deltas: Deltas of one base.

    Raises:
        DeltaError: If they have different bases.
    """
    _check_bases(deltas)
    return tuple(_compare(deltas, first, second) for first, second in combinations(range(len(deltas)), 2))


def _compare(deltas: Sequence[Delta], first: int, second: int) -> Overlap:
    a, b = deltas[first], deltas[second]
    shared = agreeing = 0
    for name in a.entries.keys() & b.entries.keys():
        entry_a, entry_b = as_elements(a.entries[name]), as_elements(b.entries[name])
        in_a = torch.isin(entry_a.ids, entry_b.ids, assume_unique=True)
        in_b = torch.isin(entry_b.ids, entry_a.ids, assume_unique=True)
        shared += int(in_a.sum())
        agreeing += int((_change(entry_a)[in_a].sign() == _change(entry_b)[in_b].sign()).sum())
    size_a, size_b = _norm(a), _norm(b)
    return Overlap(
        first=first,
        second=second,
        shared_entries=shared,
        share=shared / min(_num_entries(a), _num_entries(b)),
        sign_agreement=agreeing / shared if shared else None,
        relative_size=size_b / size_a if size_a else None,
    )


def _change(entry: DeltaEntry) -> Tensor:
    return entry.new.double() - entry.old.double()


def _norm(delta: Delta) -> float:
    norms = [torch.linalg.vector_norm(_change(entry)) for entry in delta.entries.values()]
    return float(torch.linalg.vector_norm(torch.stack(norms)))


def _num_entries(delta: Delta) -> int:
    return sum(entry.new.numel() for entry in delta.entries.values())


def combine(deltas: Sequence[Delta], *, conflict: Conflict = "error") -> Delta:
    """Return one delta that does what several do.

    A weight that all of them change by the same kind of support keeps that kind (so that columns still export to a
    LoRA); where kinds differ, or the support is of blocks, it becomes one of single entries.

    Args:
        deltas: Deltas of one base, at least one.
        conflict: What to do where two change the same entry: ``error`` refuses, ``sum`` adds the changes, ``mean``
            averages the changes of those that hold the entry, ``first`` takes the first delta's value.

    Raises:
        DeltaError: If they have different bases, a conflict is refused, or a sum is not finite.
        UsageError: If there is no delta or no such rule.
    """
    if not deltas:
        raise UsageError("nothing to combine; give at least one delta")
    if conflict not in get_args(Conflict):
        raise UsageError(f"unknown conflict rule '{conflict}'{did_you_mean(conflict, get_args(Conflict))}")
    _check_bases(deltas)
    parts: dict[str, list[DeltaEntry]] = {}
    for delta in deltas:
        for name, entry in delta.entries.items():
            parts.setdefault(name, []).append(entry)
    entries = {name: _combine_entries(name, found, conflict) for name, found in parts.items()}
    manifest = {"combined": [dict(delta.manifest) for delta in deltas], "conflict": conflict}
    return Delta(entries, deltas[0].base_digest, manifest)


def _check_bases(deltas: Sequence[Delta]) -> None:
    bases = Counter(delta.base_digest for delta in deltas)
    if len(bases) > 1:
        raise DeltaError(f"the deltas belong to {len(bases)} different bases: {', '.join(base[:12] for base in bases)}")


def _combine_entries(name: str, entries: list[DeltaEntry], conflict: Conflict) -> DeltaEntry:
    first = entries[0]
    if any(entry.shape != first.shape or entry.old.dtype != first.old.dtype for entry in entries):
        raise DeltaError(f"{name}: the deltas hold it in different shapes or dtypes; train them at one precision")
    if len(entries) == 1:
        return first
    if len({entry.kind for entry in entries}) > 1 or first.kind not in _UNIT_AXIS:
        entries = [as_elements(entry) for entry in entries]
    axis = _UNIT_AXIS[entries[0].kind]
    ids, holders = torch.unique(torch.cat([entry.ids for entry in entries]), return_counts=True)
    shared = holders > 1
    if conflict == "error" and bool(shared.any()):
        units = f"{entries[0].kind}s" if entries[0].kind != "element" else "entries"
        raise DeltaError(
            f"{name}: {int(shared.sum())} {units} are changed by more than one delta; "
            "choose what to do: conflict = sum, first or mean"
        )
    # ids first: (units, ...)
    olds = [entry.old.movedim(axis, 0) for entry in entries]
    news = [entry.new.movedim(axis, 0) for entry in entries]
    places = [torch.searchsorted(ids, entry.ids) for entry in entries]
    old = olds[0].new_empty((len(ids), *olds[0].shape[1:]))
    new, change = torch.empty_like(old), torch.zeros_like(old, dtype=torch.float64)
    for at, old_part, new_part in reversed(list(zip(places, olds, news, strict=True))):  # the first is written last
        old[at], new[at] = old_part, new_part
        change[at] += new_part.double() - old_part.double()
    if not all(torch.equal(old[at], old_part) for at, old_part in zip(places, olds, strict=True)):
        raise DeltaError(f"{name}: the deltas start from different values; they do not belong to one base")
    if conflict in ("sum", "mean"):
        if conflict == "mean":
            change /= holders.view(-1, *[1] * (change.ndim - 1))
        new[shared] = (old.double() + change).to(old.dtype)[shared]
    if not bool(torch.isfinite(new).all()):
        raise DeltaError(f"{name}: the combined values are not finite in {new.dtype}")
    return replace(entries[0], ids=ids, old=old.movedim(0, axis).contiguous(), new=new.movedim(0, axis).contiguous())
