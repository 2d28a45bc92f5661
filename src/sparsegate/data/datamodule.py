"""Batches of encoded samples, bucketed by length, in an order that a resumed run repeats exactly."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NotRequired, TypedDict, cast

import lightning as L
import torch
from torch import Tensor

from sparsegate.contracts import EncodedSample
from sparsegate.errors import DataError

IGNORED = -100  # the label that cross-entropy skips
_BUCKET_BATCHES = 16


class Batch(TypedDict):
    """One padded batch.

    ``input_ids``, ``attention_mask`` and ``labels`` have shape (batch, tokens) and are padded on the right; ``labels``
    equal ``input_ids`` on response tokens and ``IGNORED`` elsewhere. ``ids`` are the samples' ids. ``position_ids`` are
    there where a token's place is not that in its row, as in :func:`~sparsegate.training.shared_start.pack`.
    """

    input_ids: Tensor
    attention_mask: Tensor
    labels: Tensor
    ids: list[str]
    position_ids: NotRequired[Tensor]


def collate(samples: Sequence[EncodedSample], *, pad_id: int) -> Batch:
    """Pad samples to the longest of them."""
    width = max(len(sample.prompt_ids) + len(sample.response_ids) for sample in samples)
    input_ids = torch.full((len(samples), width), pad_id, dtype=torch.long)
    attention_mask = torch.zeros((len(samples), width), dtype=torch.long)
    labels = torch.full((len(samples), width), IGNORED, dtype=torch.long)
    for row, sample in enumerate(samples):
        tokens = torch.tensor(sample.prompt_ids + sample.response_ids)
        input_ids[row, : len(tokens)] = tokens
        attention_mask[row, : len(tokens)] = 1
        labels[row, len(sample.prompt_ids) : len(tokens)] = tokens[len(sample.prompt_ids) :]
    return Batch(
        input_ids=input_ids, attention_mask=attention_mask, labels=labels, ids=[sample.id for sample in samples]
    )


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Return a batch with its tensors on a device."""
    moved = {key: value.to(device) if isinstance(value, Tensor) else value for key, value in batch.items()}
    return cast(Batch, moved)


class BatchLoader:
    """Iterates over batches of similar length; each pass is shuffled anew from the seed and the pass's number.

    It has ``state_dict`` and ``load_state_dict``, so that Lightning saves its place in a checkpoint and a resumed run
    goes on with the batch that would have come next.

    Args:
        samples: The samples; their ids must be unique.
        batch_size: Samples in a batch.
        pad_id: Token id used for padding.
        seed: Seed of the order; None keeps the samples sorted by length and does not shuffle.
        rank: Which part of the samples to give. It stays the same from pass to pass, so that what a rank keeps about
            its samples stays useful.
        num_ranks: Into how many parts the samples are dealt. All parts give equally many batches: one that runs out
            ends with a batch without supervised tokens.
    """

    def __init__(
        self,
        samples: Sequence[EncodedSample],
        *,
        batch_size: int,
        pad_id: int,
        seed: int | None,
        rank: int = 0,
        num_ranks: int = 1,
    ) -> None:
        if len({sample.id for sample in samples}) != len(samples):
            raise DataError("sample ids must be unique")
        self._samples = samples[rank::num_ranks]
        self._stand_in = samples[:1]
        self._num_batches = -(-len(samples[::num_ranks]) // batch_size)
        self._batch_size = batch_size
        self._pad_id = pad_id
        self._seed = seed
        self._epoch = 0
        self._position = 0
        self._resume_at = 0

    def __len__(self) -> int:
        return self._num_batches

    def __iter__(self) -> Iterator[Batch]:
        order = self._order(self._epoch)
        start, self._resume_at = self._resume_at, 0
        for position in range(start, len(order)):
            # before the batch is handed out: who counts the batches does not come back after the last one
            is_last = position + 1 == len(order)
            self._epoch, self._position = (self._epoch + 1, 0) if is_last else (self._epoch, position + 1)
            yield self._batch(order[position])

    def first_pass(self) -> Iterator[Batch]:
        """Yield the batches of the first pass that have been handed out, without moving the place in the order."""
        for indices in self._handed_out():
            yield self._batch(indices)

    def _batch(self, indices: list[int]) -> Batch:
        if indices:
            return collate([self._samples[index] for index in indices], pad_id=self._pad_id)
        batch = collate(self._stand_in, pad_id=self._pad_id)
        batch["labels"].fill_(IGNORED)
        return batch

    def some_of_first_pass(self, count: int, *, start: int) -> list[Batch]:
        """Return ``count`` of :meth:`first_pass`'s batches, or all if fewer, from number ``start`` on, in a circle."""
        order = self._handed_out()
        chosen = [order[(start + number) % len(order)] for number in range(min(count, len(order)))]
        return [self._batch(indices) for indices in chosen]

    def _handed_out(self) -> list[list[int]]:
        order = self._order(0)
        return order if self._epoch else order[: self._position]

    def _order(self, epoch: int) -> list[list[int]]:
        """Return the indices of the samples of each batch."""
        order = self._own_order(epoch)
        return order + [[]] * (self._num_batches - len(order))

    def _own_order(self, epoch: int) -> list[list[int]]:
        lengths = [len(sample.prompt_ids) + len(sample.response_ids) for sample in self._samples]
        size = self._batch_size
        if self._seed is None:
            indices = sorted(range(len(lengths)), key=lambda index: lengths[index])
            return [indices[start : start + size] for start in range(0, len(indices), size)]
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + epoch)
        shuffled = torch.randperm(len(lengths), generator=generator).tolist()
        batches: list[list[int]] = []
        for start in range(0, len(shuffled), size * _BUCKET_BATCHES):
            bucket = sorted(shuffled[start : start + size * _BUCKET_BATCHES], key=lambda index: lengths[index])
            batches += [bucket[first : first + size] for first in range(0, len(bucket), size)]
        return [batches[index] for index in torch.randperm(len(batches), generator=generator).tolist()]

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self._epoch, "position": self._position}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self._epoch, self._position = state["epoch"], state["position"]
        self._resume_at = self._position


class SampleDataModule(L.LightningDataModule):
    """Training and validation batches.

    Args:
        train: Samples to train on.
        validation: Samples for the validation loss; may be empty.
        batch_size: Samples in a batch.
        pad_id: Token id used for padding.
        seed: Seed of the training order.
    """

    def __init__(
        self,
        train: Sequence[EncodedSample],
        validation: Sequence[EncodedSample] = (),
        *,
        batch_size: int,
        pad_id: int,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if not train:
            raise DataError("the training set is empty")
        if shared := {sample.id for sample in train} & {sample.id for sample in validation}:
            raise DataError(f"sample id '{min(shared)}' stands in both training and validation; ids must be unique")
        self._train, self._validation = train, validation
        self._batch_size, self._pad_id, self._seed = batch_size, pad_id, seed
        self._calibration = self._loader(train, seed=seed)

    def train_dataloader(self) -> Any:
        return self._loader(self._train, seed=self._seed, **self._place())

    def calibration_batches(self) -> BatchLoader:
        """Return training batches whose use does not move the training order; the same on all ranks."""
        return self._calibration

    def val_dataloader(self) -> Any:
        return self._loader(self._validation, seed=None, **self._place()) if self._validation else []

    def _place(self) -> dict[str, int]:
        """Return this process's place among those that train together."""
        if self.trainer is None:
            return {}
        return {"rank": self.trainer.global_rank, "num_ranks": self.trainer.world_size}

    def _loader(self, samples: Sequence[EncodedSample], *, seed: int | None, **place: int) -> BatchLoader:
        return BatchLoader(samples, batch_size=self._batch_size, pad_id=self._pad_id, seed=seed, **place)
