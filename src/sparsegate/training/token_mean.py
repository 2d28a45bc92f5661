"""The mean over tokens in place of the mean over batches.

Lightning averages the losses of accumulated batches, and DDP the gradients of ranks, as if all had equally many
supervised tokens. Here each batch counts by its tokens, so that one optimizer step follows the gradient of the mean
over all of them, however they were cut into batches.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from lightning.pytorch.strategies import Strategy
from torch import Tensor

_TOKENS = 256  # a power of two changes no bits; near a batch's count, it keeps float16 gradients in range


class TokenMean:
    """Weighs the losses of one optimizer step, and takes the weights out of the gradients they have left."""

    def __init__(self) -> None:
        self._mean_weight = 0.0

    def weigh(self, loss: Tensor, num_tokens: int, *, num_batches: int) -> Tensor:
        """Return the loss weighed by its tokens.

        Args:
            loss: Mean over the batch's supervised tokens, already divided by ``num_batches``.
            num_tokens: Number of these tokens.
            num_batches: Batches for one optimizer step.
        """
        weight = num_tokens / _TOKENS
        self._mean_weight += weight / num_batches
        return loss * weight

    def finish(self, parameters: Iterable[Tensor], strategy: Strategy) -> None:
        """Divide the gradients by the weights of all batches and ranks, and start anew.

        Args:
            parameters: Parameters with the step's gradients, averaged over ranks.
            strategy: Knows the other ranks.
        """
        weight = torch.tensor(self._mean_weight, device=strategy.root_device)
        weight = strategy.reduce(weight, reduce_op="mean")
        self._mean_weight = 0.0
        for parameter in parameters:
            if parameter.grad is not None:
                parameter.grad.div_(weight)
