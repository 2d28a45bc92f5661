"""The table of methods: how each is set up on a loaded model, as its own users would.

Torch, PEFT and our engine are imported by the builders, so that the table can be read without them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from sparsegate.config import RefreshConfig
from sparsegate.errors import UsageError
from sparsegate.workflow.bench.options import parse_sparse

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor, nn
    from torch.optim import Optimizer
    from transformers import PreTrainedModel

    from sparsegate.data.datamodule import Batch

_LEARNING_RATE = 1e-4
LORA_RANK = 16
_SETTINGS = {"r": LORA_RANK, "lora_alpha": 2 * LORA_RANK, "target_modules": "all-linear"}
DEAREST_REFRESH = RefreshConfig(below=2, margin=1, minimum_age_steps=0)  # every support may change


@dataclass(frozen=True)
class Setup:
    """What a builder gets.

    Args:
        model: The base model on its device, in training mode.
        setting: What stands after the method's name and a colon.
        calibration: Batches to choose by.
        seed: Seed of whatever the method draws.
        steps: Length of a schedule of the method's own; every step must lie inside it.
        refresh: How far a sparse method with ``refresh=N`` changes its choice each time.
    """

    model: PreTrainedModel
    setting: str
    calibration: Sequence[Batch]
    seed: int
    steps: int = 1000
    refresh: RefreshConfig = DEAREST_REFRESH


@dataclass(frozen=True)
class Prepared:
    """A method that is ready to step.

    Args:
        model: Holds the parameters; those that require a gradient are trained.
        loss: The loss of one batch.
        optimizer: Steps the trained parameters.
        write: Writes what the user keeps, as safetensors, into a folder.
        refresh: Called with the number of each step, from 0, between the optimizer's step and the clearing of the
            gradients; None where a method has nothing to do then.
        kept: Tensors that the method keeps and that are neither parameters nor buffers.
    """

    model: nn.Module
    loss: Callable[[Batch], Tensor]
    optimizer: Optimizer
    write: Callable[[Path], object]
    refresh: Callable[[int], object] | None = None
    kept: tuple[Tensor, ...] = ()

    def trained(self) -> list[Tensor]:
        """Return what the optimizer steps."""
        return [weight for group in self.optimizer.param_groups for weight in group["params"]]


def _full(setup: Setup) -> Prepared:
    setup.model.requires_grad_(True)
    return Prepared(setup.model, _library_loss(setup.model), _adamw(setup.model), setup.model.save_pretrained)


def _full_ours(setup: Setup) -> Prepared:
    setup.model.requires_grad_(True)
    return Prepared(setup.model, _our_loss(setup.model), _adamw(setup.model), setup.model.save_pretrained)


def _lora(setup: Setup) -> Prepared:
    return _adapter(setup, import_peft().LoraConfig(**_SETTINGS))


def _lora_ours(setup: Setup) -> Prepared:
    return _adapter(setup, import_peft().LoraConfig(**_SETTINGS), loss=_our_loss)


def _rslora(setup: Setup) -> Prepared:
    return _adapter(setup, import_peft().LoraConfig(**_SETTINGS, use_rslora=True))


def _dora(setup: Setup) -> Prepared:
    return _adapter(setup, import_peft().LoraConfig(**_SETTINGS, use_dora=True))


def _adalora(setup: Setup) -> Prepared:
    # its paper starts at one and a half times the rank it ends with
    config = import_peft().AdaLoraConfig(
        init_r=LORA_RANK * 3 // 2,
        target_r=LORA_RANK,
        lora_alpha=2 * LORA_RANK,
        target_modules="all-linear",
        total_step=setup.steps,
    )
    prepared = _adapter(setup, config)
    tuner: Any = prepared.model.base_model
    return replace(prepared, refresh=tuner.update_and_allocate)


def _shira(setup: Setup) -> Prepared:
    config = import_peft().ShiraConfig(r=LORA_RANK, target_modules="all-linear", random_seed=setup.seed)
    prepared = _adapter(setup, config)
    indices = (tensor for layer in prepared.model.modules() for tensor in getattr(layer, "shira_indices", {}).values())
    return replace(prepared, kept=tuple(indices))


def _supertuning(setup: Setup) -> Prepared:
    return _adapter(setup, import_peft().SupertuningConfig(target_modules="all-linear"))


def _sparse(setup: Setup) -> Prepared:
    from sparsegate.sparse.delta import write_delta
    from sparsegate.sparse.optimizer import make_optimizer
    from sparsegate.training.module import SparseFineTuner
    from sparsegate.training.refresh import refresh

    setting = parse_sparse(setup.setting)
    tuner = SparseFineTuner(
        setup.model,
        selector=setting.selector,
        support=setting.support,
        density=setting.density,
        allocation=setting.allocation,
        frozen_depth=setting.cut,
        cache_prefix=setting.cached,
        trim_heap=setting.trim,
        calibration_batches=len(setup.calibration),
        seed=setup.seed,
    )
    tuner.select(setup.calibration)
    tuner.on_fit_start()  # frozen layers are deterministic, since their outputs may be kept
    optimizer = make_optimizer(setup.model, learning_rate=tuner.learning_rate, weight_decay=0.0)

    def refresh_when_due(step: int) -> None:
        rule = setup.refresh
        if (step + 1) % setting.refresh == 0:
            refresh(
                tuner,
                optimizer,
                setup.calibration[: rule.batches],
                below=rule.below,
                fraction=rule.fraction,
                margin=rule.margin,
                minimum_age=rule.minimum_age_steps,
            )

    return Prepared(
        setup.model,
        _library_loss(setup.model) if setting.plain_loss else tuner.loss,
        optimizer,
        lambda folder: write_delta(tuner.delta(base_digest="bench"), folder / "delta.safetensors"),
        refresh=refresh_when_due if setting.refresh else None,
    )


class Method(NamedTuple):
    """One line of the table: what it is, whether it needs PEFT, and how it is set up."""

    about: str
    needs_peft: bool
    build: Callable[[Setup], Prepared]


METHODS: dict[str, Method] = {
    "full": Method("all weights", False, _full),
    "full-ours": Method("all weights, our loss", False, _full_ours),
    "lora": Method(f"PEFT LoRA, all linear maps, rank {LORA_RANK}", True, _lora),
    "lora-ours": Method("the same, our loss", True, _lora_ours),
    "rslora": Method("PEFT LoRA with rank-stabilised scaling", True, _rslora),
    "dora": Method("PEFT DoRA", True, _dora),
    "adalora": Method(f"PEFT AdaLoRA, from rank {LORA_RANK * 3 // 2} to {LORA_RANK}", True, _adalora),
    "shira": Method("PEFT SHiRA, random mask, as many values as LoRA", True, _shira),
    "supertuning": Method("PEFT Super-Tuning, the largest 1%", True, _supertuning),
    "sparse": Method(
        "ours: sparse:default, sparse:lean or sparse:SUPPORT, and then [:density=D][:cut=F|auto][:allocation=NAME]"
        "[:selector=NAME][:refresh=N][:trim][:cached][:plain_loss]",
        False,
        _sparse,
    ),
}


# --- parts --------------------------------------------------------------------------------------


def import_peft() -> Any:
    """Return the package peft.

    Raises:
        UsageError: If it is not installed.
    """
    try:
        import peft
    except ImportError:
        raise UsageError("this method needs the package peft: pip install 'sparsegate[bench]'") from None
    return peft


def _adapter(setup: Setup, config: Any, *, loss: Callable[[Any], Callable[[Batch], Tensor]] | None = None) -> Prepared:
    model = import_peft().get_peft_model(setup.model, config)
    loss = _library_loss if loss is None else loss

    def write(folder: Path) -> None:
        model.save_pretrained(folder, save_embedding_layers=False)

    return Prepared(model, loss(model), _adamw(model), write)


def _adamw(model: nn.Module) -> Optimizer:
    from torch.optim import AdamW

    return AdamW([p for p in model.parameters() if p.requires_grad], lr=_LEARNING_RATE)


def _library_loss(model: Any) -> Callable[[Batch], Tensor]:
    """Return the loss as trainers of the libraries take it: from the model itself, which makes logits everywhere."""

    def loss(batch: Batch) -> Tensor:
        output = model(
            input_ids=batch["input_ids"],
            attention_mask=batch["attention_mask"],
            labels=batch["labels"],
            use_cache=False,
        )
        value: Tensor = output.loss
        return value

    return loss


def _our_loss(model: Any) -> Callable[[Batch], Tensor]:
    from sparsegate.training.loss import supervised_loss

    return partial(supervised_loss, model)
