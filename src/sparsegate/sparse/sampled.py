"""The gradient of single entries, by whichever of two ways is quicker here.

Dense: the whole ``a^T b`` by one matrix product, of which the entries are gathered. Sampled: for each entry the sum
over the tokens of ``a[:, i] * b[:, j]``. A matrix product does far more arithmetic in the same time, so that sampling
wins only where few entries are trained; where, depends on the machine. It is measured once for each case, at its first
gradient. The two ways round differently, so that two runs with equal seeds can differ in the last bits.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

# of the entries; at 5% sampling took 18 to 50 times as long (CONTRIBUTING.md), so nothing is measured above this
_LARGEST_SHARE = 0.02
_CHUNK_NUMBERS = 2**21  # gathered at a time from each side: 8 MB in fp32
_REPEATS = 2


class Case(NamedTuple):
    """What decides which way is quicker; of the tokens, the power of two."""

    rows: int
    columns: int
    tokens_log2: int
    entries: int
    dtype: str
    device: str


_sampling_wins: dict[Case, bool] = {}


def element_gradient(a: Tensor, b: Tensor, ids: Tensor) -> Tensor:
    """Return the entries ``ids`` of ``a^T b``.

    Args:
        a: Shape (tokens, m).
        b: Shape (tokens, n).
        ids: Flat indices into (m, n), shape (k).

    Returns:
        Shape (k).
    """
    if len(ids) > _LARGEST_SHARE * a.shape[1] * b.shape[1]:
        return dense(a, b, ids)
    case = Case(a.shape[1], b.shape[1], len(a).bit_length(), len(ids), str(a.dtype), a.device.type)
    if case not in _sampling_wins:
        _sampling_wins[case] = _seconds(sampled, a, b, ids) < _seconds(dense, a, b, ids)
    return (sampled if _sampling_wins[case] else dense)(a, b, ids)


def measured_choices() -> list[tuple[tuple[int | str, ...], bool]]:
    """Return what was measured in this process, for a checkpoint: a run that goes on from it must not choose anew."""
    return [(tuple(case), wins) for case, wins in _sampling_wins.items()]


def recall_choices(choices: Iterable[tuple[Iterable[Any], bool]]) -> None:
    """Take over what :func:`measured_choices` returned in another process."""
    _sampling_wins.update({Case(*case): wins for case, wins in choices})


def dense(a: Tensor, b: Tensor, ids: Tensor) -> Tensor:
    """The whole product, then gathered."""
    return (a.T @ b).flatten().index_select(0, ids)


def sampled(a: Tensor, b: Tensor, ids: Tensor) -> Tensor:
    """One sum over the tokens for each entry, a bounded number of entries at a time."""
    # fp32: the products would be rounded to bf16 one by one
    sum_dtype = torch.promote_types(a.dtype, torch.float32)
    a_rows, b_rows = (side.to(sum_dtype).T.contiguous() for side in (a, b))
    columns = b.shape[1]
    parts = [
        (a_rows.index_select(0, part // columns) * b_rows.index_select(0, part % columns)).sum(1)
        for part in torch.split(ids, max(1, _CHUNK_NUMBERS // len(a)))
    ]
    return torch.cat(parts)


def _seconds(way: Callable[[Tensor, Tensor, Tensor], Tensor], a: Tensor, b: Tensor, ids: Tensor) -> float:
    """Return the best time of a few, after one that does not count."""

    def timed() -> float:
        started = time.perf_counter()
        way(a, b, ids)
        if a.is_cuda:
            torch.cuda.synchronize(a.device)
        return time.perf_counter() - started

    timed()
    return min(timed() for _ in range(_REPEATS))
