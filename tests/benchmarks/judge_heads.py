"""Fits the embedded judge's heads by penalised logistic regression, all sources counting alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from judge_data import Row
from torch import Tensor
from torch.nn import functional as F

PENALTY = 0.03  # of the squared weights, features standardised, losses weighted to a sum of 1
SIGNS = 3.0  # how much less the three signs are penalised than one coordinate of the state, as a factor of their scale
_WIDTH_OF_SIGNS = 3
_FULL_COUNT = 40  # a source with fewer rows of a kind counts in proportion


def fit_heads(rows: Sequence[Row], read: Mapping[str, Tensor], key: Callable[[Row], str]) -> dict[str, Tensor]:
    """Return the heads ``intent`` and ``help``: each the weights of its features, then its bias.

    Args:
        rows: Training rows.
        read: ``KEY/prompt``, shape (width), and ``KEY/windows``, shape (windows, width + 3), of each row.
        key: The key of a row.
    """
    prompts = [*{row.prompt: row for row in rows}.values()]
    helping = [row for row in rows if row.response and row.helps is not None]
    states = [read[f"{key(row)}/windows"] for row in helping]
    return {
        "intent": _fit([read[f"{key(row)}/prompt"][None] for row in prompts], [row.asks for row in prompts], prompts),
        "help": _fit(states, [bool(row.helps) for row in helping], helping, signs=SIGNS),
    }


def score(head: Tensor, windows: Tensor) -> float:
    """Return the highest score of a head over windows, shape (windows, features)."""
    return float((windows @ head[:-1] + head[-1]).max())


def _fit(bags: Sequence[Tensor], labels: Sequence[bool], rows: Sequence[Row], *, signs: float = 1.0) -> Tensor:
    """Fit a head that scores a bag by the log-sum-exp over its windows: one that shows the label is enough."""
    weights = _weights(rows, labels)
    counts = torch.tensor([len(bag) for bag in bags])
    flat, owner = torch.cat([*bags]).float(), torch.repeat_interleave(torch.arange(len(bags)), counts)
    share = (weights / counts)[owner][:, None]
    mean = (share * flat).sum(0)
    scale = ((share * (flat - mean) ** 2).sum(0)).sqrt() + 1e-3
    if signs != 1:
        scale[-_WIDTH_OF_SIGNS:] /= signs
    inputs, wanted = (flat - mean) / scale, torch.tensor(labels, dtype=torch.float32)
    solution = torch.zeros(inputs.shape[1] + 1, requires_grad=True)
    optimizer = torch.optim.LBFGS([solution], max_iter=100, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        scores = inputs @ solution[:-1] + solution[-1]
        most = torch.full((len(bags),), -torch.inf).scatter_reduce(0, owner, scores.detach(), "amax")
        summed = torch.zeros(len(bags)).index_add(0, owner, (scores - most[owner]).exp())
        losses = F.binary_cross_entropy_with_logits(summed.log() + most, wanted, reduction="none")
        loss = (weights * losses).sum() + PENALTY * solution[:-1].square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    found = solution.detach()
    scaled = found[:-1] / scale
    return torch.cat([scaled, (found[-1] - scaled @ mean)[None]])


def _weights(rows: Sequence[Row], labels: Sequence[bool]) -> Tensor:
    """Weigh both labels alike, in them prompts that ask for harm and others, and in these all sources."""
    cells: dict[bool, dict[bool, dict[str, list[int]]]] = {}
    for index, (row, label) in enumerate(zip(rows, labels, strict=True)):
        cells.setdefault(label, {}).setdefault(row.asks, {}).setdefault(row.source, []).append(index)
    weights = torch.zeros(len(rows))
    for by_intent in cells.values():
        for by_source in by_intent.values():
            shares = {source: min(1.0, len(found) / _FULL_COUNT) for source, found in by_source.items()}
            for source, found in by_source.items():
                weights[found] = shares[source] / sum(shares.values()) / len(found) / len(by_intent) / len(cells)
    return weights
