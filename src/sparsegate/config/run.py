"""Everything that decides a run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from sparsegate.config.inputs import DataConfig, ModelConfig, SafetyConfig
from sparsegate.config.release import DriftConfig, EvaluationConfig, NotifyConfig, RegistryConfig
from sparsegate.config.rules import collect
from sparsegate.config.training import TrainingConfig


@dataclass(frozen=True)
class RunConfig:
    """Everything that decides a run.

    Args:
        model: The base model.
        data: The samples.
        safety: Safety prompt sets and mix.
        training: Sparse fine-tuning.
        evaluation: Predictions.
        registry: MLflow.
        notify: Who is told how a run ended.
        drift: When what users ask has drifted.
        trigger: What a run waits for: ``always`` starts, ``new_data`` only if the data differs from the champion's,
            ``drift`` only if what users ask has drifted from the training data.
        policy: Name of a shipped policy (``pilot``, ``standard``, ``strict``) or a policy file.
        output_dir: Folder for runs; each gets a folder named by its key.
        slot: Name of the schedule slot (such as a date): the same inputs in another slot run again.
    """

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    safety: SafetyConfig = field(default_factory=SafetyConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    evaluation: EvaluationConfig = field(default_factory=EvaluationConfig)
    registry: RegistryConfig = field(default_factory=RegistryConfig)
    notify: NotifyConfig = field(default_factory=NotifyConfig)
    drift: DriftConfig = field(default_factory=DriftConfig)
    trigger: Literal["always", "new_data", "drift"] = "always"
    policy: str = "standard"
    output_dir: str = "runs"
    slot: str = ""

    def problems(self) -> dict[str, str]:
        unlogged = self.trigger == "drift" and self.drift.log is None
        return collect(trigger="trigger drift needs drift.log, a file of what users asked" if unlogged else None)
