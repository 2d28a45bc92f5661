"""What a training step costs, in FLOPs and bytes, from the shapes of a decoder's linear maps.

FLOPs, two for each multiply-add, of T tokens in sequences of width w:

- forward: ``2 T m n`` for a map of shape (m, n), and ``4 T w a`` for attention of width a (all positions, unmasked);
- backward: the same again for the gradient of each map's input, which the maps that read the first trained layer's
  input are spared, twice attention's, and ``2 T`` for each trained entry (element supports: ``2 T m n``, since their
  gradient is dense before it is gathered);
- the head: forward and the gradient of its input, at supervised positions only; so are, in the last layer, the maps
  in :data:`~sparsegate.sparse.targets.PER_TOKEN`.

Tokens that all sequences share at their start count once, but for full fine-tuning.

Normalisation, activation functions and the optimizer are left out. Bytes are those of the trainable state, of what the
trained layers keep for the backward pass, and of the log-probabilities. A layer keeps the inputs of its maps (column
supports: the trained columns of them), queries, keys, values, mask and result of attention, what the activation
function takes, the gate's partner, and two residual states; attention is taken to be fused (``sdpa``).

Full fine-tuning and adapters keep more: what the activation function gives and its product with the gate's partner,
and what norms spelled out in Python (Llama, Qwen) keep: their input in fp32 and, with weights that are trained, their
normalised input. PEFT's adapters are fp32, so beside weights in half precision each map's adapter keeps its input in
fp32, a copy of its own. That they too keep less of the last layer under our loss is left out.

The maps of a layer fall into blocks by the module that holds them: attention first, the MLP second. The last map of a
block gives its result, the others read its input. Measured by ``tests/unit/test_sparse_cost_model.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import copy
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from sparsegate.contracts import SupportKind
from sparsegate.sparse.budget import TensorUnits, tensor_units, uniform_counts
from sparsegate.sparse.targets import PER_TOKEN, Target, find_targets

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_STATE_BYTES = 16  # for each trained value, in fp32: itself, its gradient and two moments
_ID_BYTES = 4
_FP32_BYTES = 4


class BatchShape(NamedTuple):
    """Size of a batch: sequences, their padded width in tokens, and supervised tokens in all of them.

    ``shared`` tokens at the start of all sequences run once for all of them.
    ``padded`` says that they differ in length; attention then takes a mask, and keys and values repeated for each head.
    """

    sequences: int
    width: int
    supervised: int
    shared: int = 0
    padded: bool = True

    @property
    def tokens(self) -> int:
        return self.shared + self.sequences * (self.width - self.shared)

    @property
    def pairs(self) -> int:
        """Number of pairs of tokens that attention computes, masked or not, of which each sequence has its own."""
        return self.sequences * (self.width - self.shared) * self.width


class _Map(NamedTuple):
    """A linear map, and whether it is given supervised positions only."""

    units: TensorUnits
    is_supervised: bool

    @property
    def fan_out(self) -> int:
        return self.units.shape[0]

    @property
    def fan_in(self) -> int:
        return self.units.shape[1]


class _Block(NamedTuple):
    """Maps that read the block's input, and the map that gives its result."""

    readers: tuple[_Map, ...]
    result: _Map


class CostModel:
    """Predicts the cost of training steps of one model.

    Args:
        model: A decoder-only model without sparse layers.
        kind: Shape of the supports.
        batch: Size of a batch.
    """

    def __init__(self, model: PreTrainedModel, *, kind: SupportKind, batch: BatchShape) -> None:
        self.kind: SupportKind = kind
        self.batch = batch
        targets = find_targets(model)
        last = targets[-1].layer
        self._layers = [
            _blocks(kind, list(group), is_last=layer == last)
            for layer, group in groupby(targets, lambda target: target.layer)
        ]
        self._vocabulary, self._hidden = (int(side) for side in model.get_output_embeddings().weight.shape)
        self._weight_bytes: int = targets[0].linear.weight.element_size()

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def full_step_flops(self) -> int:
        """Return the FLOPs of a full fine-tuning step: every gradient, with the loss on supervised tokens only."""
        plain = copy(self)
        plain.batch = self.batch._replace(shared=0)
        return 3 * (sum(map(plain._forward_flops, plain._layers)) + plain._head_flops())

    def step_flops(self, *, first_layer: int, density: float, cached: bool) -> int:
        """Return the FLOPs of a step that trains the layers from ``first_layer`` up at a uniform density.

        Args:
            first_layer: Index of the first trained layer.
            density: Share of each weight's units.
            cached: The layers below are not run, since their outputs are kept.
        """
        frozen = 0 if cached else sum(map(self._forward_flops, self._layers[:first_layer]))
        trained = self._layers[first_layer:]
        spared = self._dense_flops(trained[0][0].readers)
        passes = sum(2 * self._dense_flops(_maps(blocks)) + 3 * self._attention_flops(blocks) for blocks in trained)
        gradients = sum(self._gradient_flops(_maps(blocks), density) for blocks in trained)
        return frozen + passes - spared + gradients + 2 * self._head_flops()

    def state_bytes(self, *, first_layer: int, density: float) -> int:
        """Return the bytes of values, gradients, moments, original entries and ids at a uniform density."""
        tensors = [part.units for blocks in self._layers[first_layer:] for part in _maps(blocks)]
        return sum(
            count * (tensor.unit_entries * (_STATE_BYTES + self._weight_bytes) + _ID_BYTES)
            for tensor, count in zip(tensors, uniform_counts(tensors, density), strict=True)
        )

    def activation_bytes(self, *, first_layer: int, density: float) -> int:
        """Return the bytes kept from forward to backward, in the weights' type but for fp32 log-probabilities."""
        kept = sum(self._kept_numbers(blocks, density) for blocks in self._layers[first_layer:])
        return kept * self._weight_bytes + self.logit_bytes()

    def full_activation_bytes(self) -> int:
        """Return the bytes that full fine-tuning keeps from forward to backward."""
        of_norm = _FP32_BYTES // self._weight_bytes + 2
        kept = of_norm * self._hidden  # the last norm
        for blocks in self._layers:
            kept += self._attention_width(blocks) + of_norm * _norms_width(blocks) + _mlp_width(blocks)
        return self._whole_bytes(kept)

    def adapter_activation_bytes(self, rank: int) -> int:
        """Return the bytes that LoRA of a rank on every map keeps from forward to backward, as PEFT makes it."""
        wide = _FP32_BYTES // self._weight_bytes
        kept = wide * self._hidden  # the last norm
        for blocks in self._layers:
            kept += self._attention_width(blocks) + wide * (_norms_width(blocks) + rank * len(_maps(blocks)))
            if wide == 1:  # the maps of a block share their input
                kept += _norms_width(blocks) + _mlp_width(blocks)
            else:
                kept += wide * sum(part.fan_in for part in _maps(blocks))
                kept += _mlp_width(blocks) - sum(block.result.fan_in for block in blocks[1:])
        return self._whole_bytes(kept)

    def logit_bytes(self) -> int:
        """Return the bytes of the logits of all supervised positions, in fp32."""
        return _FP32_BYTES * self.batch.supervised * self._vocabulary

    def adapter_parameters(self, rank: int) -> int:
        """Return the parameters of a LoRA of a rank on every map."""
        return rank * sum(sum(part.units.shape) for blocks in self._layers for part in _maps(blocks))

    def memory_bytes(self, *, first_layer: int, density: float) -> int:
        """Return trainable state and activations together."""
        return self.state_bytes(first_layer=first_layer, density=density) + self.activation_bytes(
            first_layer=first_layer, density=density
        )

    def _whole_bytes(self, kept_width: int) -> int:
        tokens = self.batch.sequences * self.batch.width
        return tokens * kept_width * self._weight_bytes + self.logit_bytes()

    def _forward_flops(self, blocks: list[_Block]) -> int:
        return self._dense_flops(_maps(blocks)) + self._attention_flops(blocks)

    def _dense_flops(self, maps: Iterable[_Map]) -> int:
        return 2 * sum(self._tokens(part) * part.fan_out * part.fan_in for part in maps)

    def _attention_flops(self, blocks: list[_Block]) -> int:
        return 4 * (self.batch.shared**2 + self.batch.pairs) * blocks[0].result.fan_in

    def _gradient_flops(self, maps: list[_Map], density: float) -> int:
        if self.kind == "element":
            return self._dense_flops(maps)
        counts = uniform_counts([part.units for part in maps], density)
        return 2 * sum(
            self._tokens(part) * part.units.unit_entries * count for part, count in zip(maps, counts, strict=True)
        )

    def _head_flops(self) -> int:
        return 2 * self.batch.supervised * self._vocabulary * self._hidden

    def _kept_numbers(self, blocks: list[_Block], density: float) -> int:
        """Return how many numbers a trained layer keeps for the backward pass."""
        attention, *others = blocks
        kept = self._attention_numbers(blocks) + self.batch.tokens * _norms_width(blocks)  # norms keep the residuals
        kept += sum(self._tokens(part) * part.fan_out for block in others for part in block.readers)
        maps = _maps(blocks)
        if self.kind == "column":
            counts = uniform_counts([part.units for part in maps], density)
            return kept + sum(self._tokens(part) * count for part, count in zip(maps, counts, strict=True))
        for block in blocks:
            # maps share an input, but for those that are given some of its tokens
            kept += _input_width(block) * sum({self._tokens(part) for part in block.readers})
            if block is not attention or block.result.is_supervised:  # attention's whole result is counted above
                kept += self._tokens(block.result) * block.result.fan_in
        return kept

    def _attention_numbers(self, blocks: list[_Block]) -> int:
        """Return how many numbers attention keeps: queries, keys, values, result, and a mask."""
        batch, attention = self.batch, blocks[0]
        if not batch.padded and not batch.shared:
            return batch.tokens * self._attention_width(blocks)
        # keys and values of a shared start stand there for each sequence, too
        seen = batch.shared + batch.sequences * batch.width
        return 2 * (batch.tokens + seen) * attention.result.fan_in + batch.pairs

    def _attention_width(self, blocks: list[_Block]) -> int:
        """Return how many numbers attention keeps for each token where no start is shared."""
        attention = blocks[0]
        if self.batch.padded:
            return 4 * attention.result.fan_in + self.batch.width
        return sum(part.fan_out for part in attention.readers) + attention.result.fan_in

    def _tokens(self, part: _Map) -> int:
        return self.batch.supervised if part.is_supervised else self.batch.tokens


def _blocks(kind: SupportKind, targets: list[Target], *, is_last: bool) -> list[_Block]:
    blocks = []
    for _, group in groupby(targets, lambda target: target.name.rpartition(".")[0]):
        *readers, result = (
            _Map(
                tensor_units(kind, target.matrix.shape),
                is_supervised=is_last and not set(PER_TOKEN).isdisjoint(target.name.split(".")),
            )
            for target in group
        )
        blocks.append(_Block(tuple(readers), result))
    return blocks


def _maps(blocks: list[_Block]) -> list[_Map]:
    return [part for block in blocks for part in (*block.readers, block.result)]


def _input_width(block: _Block) -> int:
    return (block.readers[0] if block.readers else block.result).fan_in


def _norms_width(blocks: list[_Block]) -> int:
    """Return how many numbers go into the norms, one before each block."""
    return sum(map(_input_width, blocks))


def _mlp_width(blocks: list[_Block]) -> int:
    """Return how many numbers MLPs keep for each token where nothing is made again.

    That is what the readers give, what activation function and product give, of which the last is the input of the
    block's last map.
    """
    return sum(
        sum(part.fan_out for part in block.readers) + len(block.readers) * block.result.fan_in for block in blocks[1:]
    )
