"""How far full fine-tuning on a few batches moves each entry of a weight.

Each gradient moves its weight as soon as back-propagation has made it, and is freed at once, as in LOMO
(arXiv:2306.09782): by then nothing below needs the weight any more. Writes are counted by autograd, which refuses to go
on should a graph still need what was there.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import torch
from torch import Tensor

from sparsegate.sparse.targets import Target

LEARNING_RATE: Final = 1e-4
"""The rate at which full fine-tuning did best in this project's experiments (CONTRIBUTING.md, log of results)."""

_SMALLEST = 1e-8  # Adam's epsilon


class _MovingWeight:
    """A weight that takes Adam's steps; its moments weigh all batches alike.

    The mean gradient and the mean squared gradient need no bias correction, and two sums are their whole state. Steps
    add up in fp32 beside the original, and the weight is their sum, rounded to its own type: in bf16 a step below
    ``|w| * 2**-8`` would be lost if it were added to the weight, and the difference to the original would be 0.
    """

    def __init__(self, target: Target) -> None:
        weight: Tensor = target.linear.weight
        self._weight = weight.detach()
        self._original = self._weight.clone()
        self._grad_sum = torch.zeros_like(self._weight, dtype=torch.float32)
        self._grad_sq_sum = torch.zeros_like(self._grad_sum)
        self._count = 0
        self.moved = torch.zeros_like(self._grad_sum)
        self.handle = weight.register_post_accumulate_grad_hook(self._step)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _step(self, weight: Tensor) -> None:
        assert weight.grad is not None
        gradient = weight.grad.float()
        weight.grad = None
        self._count += 1
        self._grad_sum.add_(gradient)
        self._grad_sq_sum.addcmul_(gradient, gradient)
        # numerator and denominator of Adam's step, both times the count
        root = (self._grad_sq_sum * self._count).sqrt_().add_(self._count * _SMALLEST)
        self.moved.addcdiv_(self._grad_sum, root, value=-LEARNING_RATE)
        weight.copy_(self._original + self.moved)

    def put_back(self) -> None:
        """Give the weight its original bits."""
        self.handle.remove()
        self._weight.copy_(self._original)


@contextmanager
def moving(targets: list[Target]) -> Iterator[dict[str, Tensor]]:
    """While it is open, every backward pass moves the targets' weights; then they are put back, bit for bit.

    Beside the model it takes the size of the targets' weights once more, and 12 bytes for each of their entries, of
    which the 4 of the result stay. Weights with a gradient of two uses, as of embedding and tied head, move once.

    Args:
        targets: Weights to move; they must ask for gradients.

    Yields:
        For each target's name how far its weight has moved so far, fp32, shape (out, in).
    """
    weights: dict[str, _MovingWeight] = {}
    try:
        for target in targets:
            weights[target.name] = _MovingWeight(target)
        yield {t.name: weights[t.name].moved.T if t.is_transposed else weights[t.name].moved for t in targets}
    finally:
        for weight in weights.values():
            weight.put_back()
        torch.clear_autocast_cache()  # it may hold casts of moved weights
