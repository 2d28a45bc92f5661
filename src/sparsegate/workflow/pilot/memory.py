"""What the memory model says of a pilot's arms: here, to be held against measurement, and on larger models."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from sparsegate.data import ChatTemplate
from sparsegate.data.datamodule import IGNORED, BatchLoader
from sparsegate.errors import UsageError
from sparsegate.models import load_tokenizer
from sparsegate.reports.pilot import HardwareFit
from sparsegate.reports.pilot_arm import ArmResult
from sparsegate.sparse.cost_model import BatchShape
from sparsegate.workflow.bench.quality.samples import Split, draw
from sparsegate.workflow.pilot.config import PilotConfig
from sparsegate.workflow.pilot.projection import CPU_PROCESS, CUDA_DEVICE, estimate_memory, project

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def with_memory(
    arms: Sequence[ArmResult], config: PilotConfig, *, base_folder: Path, parts: Split
) -> tuple[list[ArmResult], tuple[HardwareFit, ...]]:
    """Return the arms with what the memory model says of them, and those that came to the end on larger models.

    Args:
        arms: The arms.
        config: The pilot.
        base_folder: The base model.
        parts: The samples.
    """
    model, batch = _empty(base_folder), _largest_batch(base_folder, config, parts)
    layers = model.config.get_text_config().num_hidden_layers
    overhead = CUDA_DEVICE if config.device == "cuda" else CPU_PROCESS
    # the planner's cut is known by where the mask begins
    cuts = {arm.name: min(cell.layer for cell in arm.mask) / layers for arm in arms if arm.mask}
    predicted: list[ArmResult] = []
    for arm in arms:
        try:
            found = estimate_memory(model, arm.name, batch, overhead=overhead, cut=cuts.get(arm.name, 0.0)).total
        except UsageError:  # no model of this method's memory
            found = None
        predicted.append(replace(arm, predicted_memory_bytes=found))
    able = [arm.name for arm in predicted if arm.state == "complete" and arm.predicted_memory_bytes is not None]
    return predicted, project(able, config.projection, cuts=cuts)


def _empty(folder: Path) -> PreTrainedModel:
    """Return the base model without its data."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(folder, local_files_only=True)
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    return model


def _largest_batch(folder: Path, config: PilotConfig, parts: Split) -> BatchShape:
    """Return the largest of the batches that the first seed trains on at the largest size."""
    data, size, seed = config.data, config.sizes[-1], config.seeds[0]
    tokenizer = load_tokenizer(folder)
    template = ChatTemplate(tokenizer, system_prompt=data.system_prompt, max_tokens=data.max_tokens)
    encoded = [template.encode(sample) for sample in draw(parts.pool, size, seed=seed)]
    pad_id = tokenizer.pad_token_id
    assert isinstance(pad_id, int)
    loader = BatchLoader(encoded, batch_size=config.batch_size, pad_id=pad_id, seed=seed)
    labels = [batch["labels"] for _ in range(config.epochs) for batch in loader]
    shapes = [(*one.shape, int((one != IGNORED).sum())) for one in labels]
    rows, width, _ = max(shapes, key=lambda shape: shape[0] * shape[1])
    return BatchShape(rows, width, max(supervised for _, _, supervised in shapes))
