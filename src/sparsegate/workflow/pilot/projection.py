"""How much memory a training takes, by a model of it: of what is measured here, and of larger models that are not.

Peak memory is that of the weights, of what is trained with its optimizer state, of what the forward pass keeps for the
backward pass, of one more copy of the logits (their gradient), and an overhead. Full fine-tuning has its gradients when
the kept activations are gone, so only the larger of both counts; its optimizer is taken to need no copies (``fused``).
The kept outputs of frozen layers (``cached``) are left out: they take what is free and go to disk beyond that.

``tests/benchmarks/memory_model.py`` holds it against the measurements of ``sparsegate bench --json``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from sparsegate.errors import UsageError
from sparsegate.reports.pilot import HardwareFit
from sparsegate.sparse.cost_model import BatchShape, CostModel
from sparsegate.training.loss import MAX_LOGIT_ROWS
from sparsegate.workflow.bench.methods import LORA_RANK
from sparsegate.workflow.bench.options import SparseSetting, parse_sparse

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_OWN_LOSS = ("full-ours", "lora-ours")
_FULL = ("full", "full-ours")
_LORA = ("lora", "lora-ours", "rslora")
_MOMENTS, _FP32_BYTES = 2, 4
_ADAPTER_BYTES = 16  # PEFT's adapters are fp32: value, gradient, two moments


class Overhead(NamedTuple):
    """What comes on top of tensors: once, and for each byte of kept activations.

    ``trimmed`` is for a heap that is trimmed, ``full`` for full fine-tuning, whose gradients fill holes in it.
    """

    fixed_bytes: float
    per_activation: float
    per_activation_trimmed: float
    per_activation_full: float


# measured on 2026-11-25 and 30 (CONTRIBUTING.md): libraries and their buffers; temporaries, and the holes that they
# leave in glibc's heap
CPU_PROCESS = Overhead(600e6, 0.70, 0.10, 0.45)
# not measured: the CUDA context and its libraries; temporaries, and blocks that torch's allocator can't use again
CUDA_DEVICE = Overhead(1e9, 0.15, 0.15, 0.15)


class MemoryEstimate(NamedTuple):
    """Where the peak of a training comes from, in bytes."""

    weights: int
    state: int
    activations: int
    logits: int
    overhead: int

    @property
    def total(self) -> int:
        return sum(self)


@dataclass(frozen=True)
class ModelShape:
    """The public shape of a Llama-like model.

    Args:
        name: What it is called, such as ``7B``.
        layers: Decoder layers.
        hidden: Width of the hidden states.
        intermediate: Width inside the MLP.
        heads: Attention heads.
        kv_heads: Heads of keys and values.
        vocabulary: Tokens.
        tied: Whether the output head shares the embedding's weight.
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocabulary: int
    tied: bool = False

    def problems(self) -> dict[str, str]:
        sizes = ("layers", "hidden", "intermediate", "heads", "kv_heads", "vocabulary")
        problems = {
            name: f"{name} must be at least 1, got {value}" for name in sizes if (value := getattr(self, name)) < 1
        }
        if not problems and (self.hidden % self.heads or self.heads % self.kv_heads):
            problems["heads"] = (
                f"heads must divide hidden, and kv_heads heads, got {self.hidden}, {self.heads} and {self.kv_heads}"
            )
        return problems


@dataclass(frozen=True)
class GpuClass:
    """A kind of device, with its memory in 10**9 bytes."""

    name: str
    memory_gb: float

    def problems(self) -> dict[str, str]:
        found = self.memory_gb
        return {} if found > 0 else {"memory_gb": f"memory_gb must be above 0, got {found:g}"}


@dataclass(frozen=True)
class ProjectionConfig:
    """Which larger models are projected, on which devices, and with which batches. Weights are bf16.

    Args:
        models: Their shapes; by default those that Llama 2 has made public (arXiv:2307.09288).
        devices: Devices to choose from, by their makers' memory sizes.
        batch_size: Samples in a batch.
        tokens: Tokens of a sample.
        supervised: Tokens of them that the loss is taken on.
    """

    models: tuple[ModelShape, ...] = (
        ModelShape("7B", 32, 4096, 11008, 32, 32, 32000),
        ModelShape("13B", 40, 5120, 13824, 40, 40, 32000),
        ModelShape("70B", 80, 8192, 28672, 64, 8, 32000),
    )
    devices: tuple[GpuClass, ...] = (
        GpuClass("T4 16 GB", 16),
        GpuClass("L4 or RTX 4090, 24 GB", 24),
        GpuClass("RTX 5090 32 GB", 32),
        GpuClass("A100 40 GB", 40),
        GpuClass("L40S 48 GB", 48),
        GpuClass("A100 or H100, 80 GB", 80),
        GpuClass("H200 141 GB", 141),
        GpuClass("B200 180 GB", 180),
    )
    batch_size: int = 8
    tokens: int = 512
    supervised: int = 64

    def problems(self) -> dict[str, str]:
        problems = {
            name: f"{name} must be at least 1, got {value}"
            for name in ("batch_size", "tokens", "supervised")
            if (value := getattr(self, name)) < 1
        }
        if not problems and self.supervised > self.tokens:
            problems["supervised"] = f"supervised must be at most tokens, got {self.supervised} and {self.tokens}"
        return problems


def estimate_memory(
    model: PreTrainedModel,
    method: str,
    batch: BatchShape,
    *,
    overhead: Overhead,
    master_weights: bool = False,
    cut: float = 0.0,
) -> MemoryEstimate:
    """Predict the peak memory of a training.

    Args:
        model: The model; one without data (``meta``) will do.
        method: ``full``, ``full-ours``, ``lora``, ``lora-ours``, ``rslora`` or ``sparse:...``, as for ``bench``.
        batch: The largest batch.
        overhead: What comes on top of tensors.
        master_weights: Full fine-tuning keeps weights and moments in fp32 beside weights in half precision.
        cut: Share of the layers that stays frozen where the method says ``cut=auto``.

    Raises:
        UsageError: If there is no model of this method's memory.
    """
    name, _, setting_text = method.partition(":")
    if name not in (*_FULL, *_LORA, "sparse"):
        raise UsageError(f"no memory model for '{method}'; there is one for {', '.join((*_FULL, *_LORA))} and sparse")
    setting = parse_sparse(setting_text) if name == "sparse" else SparseSetting(plain_loss=name not in _OWN_LOSS)
    if setting.refresh:
        raise UsageError(f"no memory model for '{method}': a refresh takes more than a step")
    rows = batch.tokens if setting.plain_loss else min(batch.supervised, MAX_LOGIT_ROWS)
    costs = CostModel(model, kind=setting.support, batch=batch._replace(supervised=rows))
    weights = sum(parameter.nbytes for parameter in model.parameters())
    if name in _FULL:
        state, activations = _full(model, weights, costs.full_activation_bytes(), master_weights)
    elif name in _LORA:
        state = _ADAPTER_BYTES * costs.adapter_parameters(LORA_RANK)
        activations = costs.adapter_activation_bytes(LORA_RANK)
    else:
        share = cut if setting.cut == "auto" else setting.cut
        plan: dict[str, Any] = {"first_layer": min(int(costs.num_layers * share + 1e-9), costs.num_layers - 1)}
        plan["density"] = setting.density
        state, activations = costs.state_bytes(**plan), costs.activation_bytes(**plan)
    per_activation = overhead.per_activation_full if name in _FULL else overhead.per_activation
    if setting.trim:
        per_activation = overhead.per_activation_trimmed
    return MemoryEstimate(
        weights=weights,
        state=state,
        activations=activations,
        logits=costs.logit_bytes(),
        overhead=round(overhead.fixed_bytes + per_activation * activations),
    )


def _full(model: PreTrainedModel, weights: int, kept: int, master_weights: bool) -> tuple[int, int]:
    """Return the optimizer's state, and the larger of kept activations and gradients."""
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if master_weights:
        return (1 + _MOMENTS) * _FP32_BYTES * parameters, max(kept, weights)
    return _MOMENTS * weights, max(kept, weights)


def project(
    arms: Sequence[str], config: ProjectionConfig, *, cuts: Mapping[str, float] | None = None
) -> tuple[HardwareFit, ...]:
    """Return the smallest device on which each method trains each larger model.

    Args:
        arms: Methods as for :func:`estimate_memory`; others are left out.
        config: Models, devices and batches.
        cuts: For arms with ``cut=auto``, the share of the layers that was frozen; without it none is.
    """
    batch = BatchShape(config.batch_size, config.tokens, config.batch_size * config.supervised)
    devices = sorted(config.devices, key=lambda device: device.memory_gb)
    known = [arm for arm in arms if arm.partition(":")[0] in (*_FULL, *_LORA, "sparse")]
    found = []
    for shape in config.models:
        model = empty_model(shape)
        for arm in known:
            needed = estimate_memory(
                model, arm, batch, overhead=CUDA_DEVICE, master_weights=True, cut=(cuts or {}).get(arm, 0.0)
            ).total
            fit = next((device for device in devices if device.memory_gb * 1e9 >= needed), None)
            found.append(
                HardwareFit(
                    model=shape.name,
                    parameters=sum(parameter.numel() for parameter in model.parameters()),
                    arm=arm,
                    memory_bytes=needed,
                    device=None if fit is None else fit.name,
                    device_bytes=None if fit is None else round(fit.memory_gb * 1e9),
                    batch_size=config.batch_size,
                    tokens=config.tokens,
                    supervised=config.supervised,
                )
            )
    return tuple(found)


@cache
def empty_model(shape: ModelShape, dtype: str = "bfloat16") -> PreTrainedModel:
    """Return a model of a shape that holds no data."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        tie_word_embeddings=shape.tied,
    )
    with torch.device("meta"):
        return LlamaForCausalLM._from_config(config, dtype=getattr(torch, dtype))
