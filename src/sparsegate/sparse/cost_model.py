"""What a training step costs, in FLOPs and bytes, from the shapes of a decoder's linear maps.

FLOPs, two for each multiply-add, of T tokens in sequences of width w:

- forward: ``2 T m n`` for a map of shape (m, n), and ``4 T w a`` for attention of width a (all positions, unmasked);
- backward: the same again for the gradient of each map's input, which the maps that read the first trained layer's
  input are spared, twice attention's, and ``2 T`` for each trained entry (element supports: ``2 T m n``, since their
  gradient is dense before it is gathered);
- the head: forward and the gradient of its input, at supervised positions only.

Normalisation, activation functions and the optimizer are left out. Bytes are those of the trainable state, of what the
trained layers keep for the backward pass, and of the log-probabilities. A layer keeps the inputs of its maps (column
supports: the trained columns of them), queries, keys, values, mask and result of attention, what the activation
function takes, the gate's partner, and two residual states; attention is taken to be fused (``sdpa``).

Full fine-tuning and adapters keep more: what the activation function gives and its product with the gate's partner,
and what norms spelled out in Python (Llama, Qwen) keep: their input in fp32 and, with weights that are trained, their
normalised input. PEFT's adapters are fp32, so beside weights in half precision each map's adapter keeps its input in
fp32, a copy of its own.

The maps of a layer fall into blocks by the module that holds them: attention first, the MLP second. The last map of a
block gives its result, the others read its input. Measured by ``tests/unit/test_sparse_cost_model.py``.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from typing import TYPE_CHECKING, NamedTuple

from sparsegate.contracts import SupportKind
from sparsegate.sparse.budget import TensorUnits, tensor_units, uniform_counts
from sparsegate.sparse.targets import Target, find_targets

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_STATE_BYTES = 16  # for each trained value, in fp32: itself, its gradient and two moments
_ID_BYTES = 4
_FP32_BYTES = 4


class BatchShape(NamedTuple):
    """Size of a batch: sequences, their padded width in tokens, and supervised tokens in all of them.

    ``padded`` says that they differ in length; attention then takes a mask, and keys and values repeated for each head.
    """

    sequences: int
    width: int
    supervised: int
    padded: bool = True

    @property
    def tokens(self) -> int:
        return self.sequences * self.width


class _Block(NamedTuple):
    """Maps that read the block's input, and the map that gives its result."""

    readers: tuple[TensorUnits, ...]
    result: TensorUnits


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
        self._layers = [_blocks(kind, list(group)) for _, group in groupby(targets, lambda target: target.layer)]
        self._vocabulary, self._hidden = (int(side) for side in model.get_output_embeddings().weight.shape)
        self._weight_bytes: int = targets[0].linear.weight.element_size()

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def full_step_flops(self) -> int:
        """Return the FLOPs of a full fine-tuning step: every gradient, with the loss on supervised tokens only."""
        return 3 * (sum(map(self._forward_flops, self._layers)) + self._head_flops())

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
        tensors = [tensor for blocks in self._layers[first_layer:] for tensor in _maps(blocks)]
        return sum(
            count * (tensor.unit_entries * (_STATE_BYTES + self._weight_bytes) + _ID_BYTES)
            for tensor, count in zip(tensors, uniform_counts(tensors, density), strict=True)
        )

    def activation_bytes(self, *, first_layer: int, density: float) -> int:
        """Return the bytes kept from forward to backward, in the weights' type but for fp32 log-probabilities."""
        kept = sum(self._kept_width(blocks, density) for blocks in self._layers[first_layer:])
        return self._activation_bytes(kept)

    def full_activation_bytes(self) -> int:
        """Return the bytes that full fine-tuning keeps from forward to backward."""
        of_norm = _FP32_BYTES // self._weight_bytes + 2
        kept = of_norm * self._hidden  # the last norm
        for blocks in self._layers:
            kept += self._attention_width(blocks) + of_norm * _norms_width(blocks) + _mlp_width(blocks)
        return self._activation_bytes(kept)

    def adapter_activation_bytes(self, rank: int) -> int:
        """Return the bytes that LoRA of a rank on every map keeps from forward to backward, as PEFT makes it."""
        wide = _FP32_BYTES // self._weight_bytes
        kept = wide * self._hidden  # the last norm
        for blocks in self._layers:
            kept += self._attention_width(blocks) + wide * (_norms_width(blocks) + rank * len(_maps(blocks)))
            if wide == 1:  # the maps of a block share their input
                kept += _norms_width(blocks) + _mlp_width(blocks)
            else:
                kept += wide * sum(tensor.shape[1] for tensor in _maps(blocks))
                kept += _mlp_width(blocks) - sum(block.result.shape[1] for block in blocks[1:])
        return self._activation_bytes(kept)

    def logit_bytes(self) -> int:
        """Return the bytes of the logits of all supervised positions, in fp32."""
        return _FP32_BYTES * self.batch.supervised * self._vocabulary

    def adapter_parameters(self, rank: int) -> int:
        """Return the parameters of a LoRA of a rank on every map."""
        return rank * sum(sum(tensor.shape) for blocks in self._layers for tensor in _maps(blocks))

    def memory_bytes(self, *, first_layer: int, density: float) -> int:
        """Return trainable state and activations together."""
        return self.state_bytes(first_layer=first_layer, density=density) + self.activation_bytes(
            first_layer=first_layer, density=density
        )

    def _activation_bytes(self, kept_width: int) -> int:
        return self.batch.tokens * kept_width * self._weight_bytes + self.logit_bytes()

    def _forward_flops(self, blocks: list[_Block]) -> int:
        return self._dense_flops(_maps(blocks)) + self._attention_flops(blocks)

    def _dense_flops(self, maps: Iterable[TensorUnits]) -> int:
        return 2 * self.batch.tokens * sum(tensor.shape[0] * tensor.shape[1] for tensor in maps)

    def _attention_flops(self, blocks: list[_Block]) -> int:
        return 4 * self.batch.tokens * self.batch.width * blocks[0].result.shape[1]

    def _gradient_flops(self, maps: list[TensorUnits], density: float) -> int:
        if self.kind == "element":
            return self._dense_flops(maps)
        counts = uniform_counts(maps, density)
        return 2 * self.batch.tokens * sum(t.unit_entries * count for t, count in zip(maps, counts, strict=True))

    def _head_flops(self) -> int:
        return 2 * self.batch.supervised * self._vocabulary * self._hidden

    def _kept_width(self, blocks: list[_Block], density: float) -> int:
        """Return how many numbers a layer keeps for each token."""
        others = blocks[1:]
        width = self._attention_width(blocks) + _norms_width(blocks)  # norms keep the residual states
        width += sum(t.shape[0] for block in others for t in block.readers)
        if self.kind == "column":
            return width + sum(uniform_counts(_maps(blocks), density))
        # attention's result is the input of its last map
        return width + _norms_width(blocks) + sum(block.result.shape[1] for block in others)

    def _attention_width(self, blocks: list[_Block]) -> int:
        """Return how many numbers attention keeps for each token: queries, keys, values, result, and a mask."""
        attention = blocks[0]
        if self.batch.padded:
            return 4 * attention.result.shape[1] + self.batch.width
        return sum(tensor.shape[0] for tensor in attention.readers) + attention.result.shape[1]


def _blocks(kind: SupportKind, targets: list[Target]) -> list[_Block]:
    blocks = []
    for _, group in groupby(targets, lambda target: target.name.rpartition(".")[0]):
        *readers, result = (tensor_units(kind, target.matrix.shape) for target in group)
        blocks.append(_Block(tuple(readers), result))
    return blocks


def _maps(blocks: list[_Block]) -> list[TensorUnits]:
    return [tensor for block in blocks for tensor in (*block.readers, block.result)]


def _input_width(block: _Block) -> int:
    return (block.readers[0] if block.readers else block.result).shape[1]


def _norms_width(blocks: list[_Block]) -> int:
    """Return how many numbers go into the norms, one before each block."""
    return sum(map(_input_width, blocks))


def _mlp_width(blocks: list[_Block]) -> int:
    """Return how many numbers MLPs keep for each token where nothing is made again.

    That is what the readers give, what activation function and product give, of which the last is the input of the
    block's last map.
    """
    return sum(
        sum(tensor.shape[0] for tensor in block.readers) + len(block.readers) * block.result.shape[1]
        for block in blocks[1:]
    )
