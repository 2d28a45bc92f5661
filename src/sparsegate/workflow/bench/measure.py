"""One measurement of one method. It belongs in a process of its own: peak memory is the process's."""

from __future__ import annotations

import gc
import math
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sparsegate.config import TrainingConfig
from sparsegate.contracts import EncodedSample
from sparsegate.data.datamodule import Batch, collate
from sparsegate.errors import SparsegateError
from sparsegate.training.callbacks import peak_memory_bytes, reset_peak_memory
from sparsegate.training.heap import trim
from sparsegate.workflow.bench.base import load_base
from sparsegate.workflow.bench.methods import METHODS, Prepared, Setup, import_peft
from sparsegate.workflow.bench.result import Measurement


@dataclass(frozen=True)
class Job:
    """What one process measures; the fields are those of :class:`~sparsegate.workflow.bench.options.BenchOptions`."""

    method: str
    model: str
    device: str
    dtype: str
    batch_size: int
    tokens: int
    supervised: int
    warmup: int
    steps: int
    threads: int
    seed: int


class _StepTimes(NamedTuple):
    forward: float
    backward: float
    optimizer: float
    refresh: float


def measure(job: Job) -> Measurement:
    """Load the model, prepare the method, train and measure.

    Raises:
        SparsegateError: If the method can't be prepared, or its loss is not finite.
    """
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    device = torch.device(job.device)
    model = load_base(job.model, device=device, dtype=job.dtype)
    total_parameters = sum(parameter.numel() for parameter in model.parameters())
    base_storages = _storages(_tensors(model))
    name, _, setting = job.method.partition(":")
    if METHODS[name].needs_peft:
        import_peft()  # here, so that its import counts as loading
    batches, calibration = _random_batches(job, model.config.get_text_config().vocab_size, device)
    load_peak = peak_memory_bytes(device)

    start_phase()
    started = now(device)
    prepared = METHODS[name].build(Setup(model, setting, calibration, job.seed))
    selection_seconds = now(device) - started
    selection_peak = peak_memory_bytes(device)

    start_phase()
    times, losses = _train(prepared, batches, job.steps, device)
    steps_peak = peak_memory_bytes(device)
    saved_activation_bytes, state_bytes = _audit(prepared, batches[0], base_storages)
    # not the median: a method may refresh at few of the steps
    refresh_seconds = statistics.fmean(step.refresh for step in times)
    return Measurement(
        step_seconds=statistics.median(sum(step) - step.refresh for step in times) + refresh_seconds,
        forward_seconds=statistics.median(step.forward for step in times),
        backward_seconds=statistics.median(step.backward for step in times),
        optimizer_seconds=statistics.median(step.optimizer for step in times),
        refresh_seconds=refresh_seconds,
        selection_seconds=selection_seconds,
        peak_memory_bytes=max(load_peak, selection_peak, steps_peak),
        load_peak_memory_bytes=load_peak,
        selection_peak_memory_bytes=selection_peak,
        steps_peak_memory_bytes=steps_peak,
        trainable_parameters=sum(parameter.numel() for parameter in _trained(prepared.model)),
        total_parameters=total_parameters,
        trainable_state_bytes=state_bytes,
        saved_activation_bytes=saved_activation_bytes,
        artifact_bytes=artifact_bytes(prepared),
        first_loss_nats=losses[0],
    )


def start_phase() -> None:
    """Start a new measurement of peak memory that owes nothing to what the phase before has freed."""
    gc.collect()
    trim()
    reset_peak_memory()


def _random_batches(job: Job, vocabulary: int, device: torch.device) -> tuple[list[Batch], list[Batch]]:
    """Return one training batch for each warm-up step, and calibration batches of other tokens."""
    generator = torch.Generator().manual_seed(job.seed)
    batches: list[Batch] = []
    for index in range(job.warmup + TrainingConfig.calibration_batches):
        rows = torch.randint(vocabulary, (job.batch_size, job.tokens), generator=generator).tolist()
        cut = job.tokens - job.supervised
        samples = [EncodedSample(f"{index}/{i}", tuple(row[:cut]), tuple(row[cut:])) for i, row in enumerate(rows)]
        batch = collate(samples, pad_id=0)
        for part in ("input_ids", "attention_mask", "labels"):
            batch[part] = batch[part].to(device)
        batches.append(batch)
    return batches[: job.warmup], batches[job.warmup :]


def _train(
    prepared: Prepared, batches: list[Batch], steps: int, device: torch.device
) -> tuple[list[_StepTimes], list[float]]:
    """Take one warm-up step on each batch, then the measured steps on the same batches."""
    times: list[_StepTimes] = []
    losses: list[float] = []
    for number in range(len(batches) + steps):
        batch = batches[number % len(batches)]
        started = now(device)
        loss = prepared.loss(batch)
        forward = now(device)
        loss.backward()  # type: ignore[no-untyped-call]
        backward = now(device)
        prepared.optimizer.step()
        stepped = refreshed = now(device)
        if prepared.refresh is not None:
            prepared.refresh(number)
            refreshed = now(device)
        prepared.optimizer.zero_grad(set_to_none=True)
        cleared = now(device)
        losses.append(float(loss.detach()))
        del loss
        optimizer = stepped - backward + cleared - refreshed
        times.append(_StepTimes(forward - started, backward - forward, optimizer, refreshed - stepped))
    if not all(math.isfinite(value) for value in losses):
        raise SparsegateError(f"the loss is not finite: {losses}")
    return times[len(batches) :], losses


def now(device: torch.device) -> float:
    """Return the time in seconds, once the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


# --- what is kept -------------------------------------------------------------------------------


def _audit(prepared: Prepared, batch: Batch, base_storages: dict[int, int]) -> tuple[int, int]:
    """Take one more forward and backward pass, unmeasured, and count the bytes that are kept.

    Returns:
        Bytes saved for the backward pass, and bytes of the trainable state with its gradients.
    """
    model_storages = _storages(_tensors(prepared.model))
    with _saved_storages() as saved:
        loss = prepared.loss(batch)
    activations = sum(size for pointer, size in saved.items() if pointer not in model_storages)
    loss.backward()  # type: ignore[no-untyped-call]
    trained = _trained(prepared.model)
    moments = [
        value for state in prepared.optimizer.state.values() for value in state.values() if isinstance(value, Tensor)
    ]
    gradients = [parameter.grad for parameter in trained if parameter.grad is not None]
    state = _storages([*trained, *gradients, *moments, *prepared.kept])
    state |= {pointer: size for pointer, size in model_storages.items() if pointer not in base_storages}
    prepared.optimizer.zero_grad(set_to_none=True)
    return activations, sum(state.values())


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def _tensors(model: nn.Module) -> list[Tensor]:
    return [*model.parameters(), *model.buffers()]


def _storages(tensors: Iterable[Tensor]) -> dict[int, int]:
    """Return the distinct storages behind tensors: address to size in bytes."""
    found: dict[int, int] = {}
    for tensor in tensors:
        # the storage of a sparse tensor is that of its parts
        parts = (tensor._indices(), tensor._values()) if tensor.layout is torch.sparse_coo else (tensor,)
        for storage in (part.untyped_storage() for part in parts):
            found[storage.data_ptr()] = storage.nbytes()
    return found


@contextmanager
def _saved_storages() -> Iterator[dict[int, int]]:
    """Collect the storages of all tensors that autograd saves while the block runs."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        saved.update(_storages([tensor]))
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved


def artifact_bytes(prepared: Prepared) -> int:
    """Return the size of what the user keeps, as written in safetensors."""
    with tempfile.TemporaryDirectory(prefix="sparsegate-bench-") as folder:
        prepared.write(Path(folder))
        return sum(path.stat().st_size for path in Path(folder).rglob("*.safetensors"))
