"""What a pilot is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from sparsegate.config import EMBEDDED_MODEL, EvaluationConfig, RegistryConfig, SafetyConfig, TrainingConfig
from sparsegate.reports.pilot import Price, Targets
from sparsegate.reports.pilot_arm import OURS
from sparsegate.workflow.bench.options import usable_threads
from sparsegate.workflow.bench.quality.config import GeneralText, QualityConfig, QualityData
from sparsegate.workflow.pilot.projection import ProjectionConfig

DEFAULT_ARMS = (
    "full",
    "lora",
    "sparse:default",
    "sparse:lean",
    "sparse:column:density=0.1:cut=auto:cached",
)
# where the search begins, by name, or by the whole name of an arm; it goes on where the best is at an end
DEFAULT_RATES: Mapping[str, tuple[float, ...]] = {
    "full": (5e-5, 1e-4, 2e-4),
    "lora": (5e-4, 1e-3, 2e-3),
    "sparse": (6e-4, 1.2e-3, 2.4e-3),
    "sparse:default": (1.9e-3, 3.8e-3),  # random columns take more than chosen ones
    "sparse:lean": (2.7e-3, 5.4e-3),
}
QUICK_FACTOR, QUICK_EVALUATION, QUICK_PROMPTS = 2, 120, 30


@dataclass(frozen=True)
class PilotSafety:
    """What every model is asked beside the task, before and after training.

    Args:
        red_team: Harmful requests (columns id, category, prompt).
        benign: Sensitive-sounding but harmless requests (columns id, category, prompt).
        canaries: Answers with a known label, which prove that the judge is awake.
        limit: Use only so many prompts of each set, spread over its categories; None uses all.
        max_new_tokens: Length of each free answer in tokens.
    """

    red_team: str = SafetyConfig.red_team
    benign: str = SafetyConfig.benign
    canaries: str = SafetyConfig.canaries
    limit: int | None = None
    max_new_tokens: int = SafetyConfig.max_new_tokens

    def problems(self) -> dict[str, str]:
        return {
            name: f"{name} must be at least 1, got {value}"
            for name, value in (("limit", self.limit), ("max_new_tokens", self.max_new_tokens))
            if value is not None and value < 1
        }


@dataclass(frozen=True)
class PilotConfig:
    """Everything that decides a pilot. Every arm gets the same samples in the same order, and the same gates.

    Args:
        name: What it is called in MLflow and on its page.
        data: The samples, a classification task; ``train_sizes`` are the sizes of the learning curve.
        targets: What must be reached, what it may cost, and what is safe.
        output: Folder for results, evidence and reports; what stands in it is not run again.
        arms: Methods as ``sparsegate bench`` knows them.
        whole: Add a last size: all training samples that there are.
        learning_rates: Rates that the search begins with, for an arm or for all arms of a name (``sparse``); arms of
            other names than ``full``, ``lora`` and ``sparse`` need theirs.
        reference: The arm that savings are counted from; it is never stopped early.
        search_size: Training examples with which learning rates are tried; None takes the smallest of the sizes.
        prices: Devices with their prices; the money target is held against the first.
        trainings_per_year: How often the model will be trained; an assumption for the yearly cost.
        policy: Name of a shipped policy, or a policy file, whose gates every arm must pass.
        safety: What is asked beside the task.
        model: Any source of a base model.
        seeds: Seeds of the training examples, their order, and all that a method draws.
        epochs: Passes over the training examples.
        batch_size: Samples in a step.
        evaluation_batch_size: Samples scored at once.
        general_text: Text to measure forgetting on; None measures none.
        projection: Larger models, and the devices that they may be trained on.
        device: Where to train.
        threads: Processor threads of each run.
        tracking_uri: Any MLflow tracking URI.
        experiment: MLflow experiment.
    """

    name: str
    data: QualityData
    targets: Targets
    output: str
    arms: tuple[str, ...] = DEFAULT_ARMS
    whole: bool = False
    learning_rates: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    reference: str = "full"
    search_size: int | None = None
    prices: tuple[Price, ...] = ()
    trainings_per_year: int = 12
    policy: str = "pilot"
    safety: PilotSafety = field(default_factory=PilotSafety)
    model: str = EMBEDDED_MODEL
    seeds: tuple[int, ...] = (0, 1, 2)
    epochs: int = TrainingConfig.epochs
    batch_size: int = 8
    evaluation_batch_size: int = EvaluationConfig.batch_size
    general_text: GeneralText | None = None
    projection: ProjectionConfig = field(default_factory=ProjectionConfig)
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = field(default_factory=usable_threads)
    tracking_uri: str = RegistryConfig.tracking_uri
    experiment: str = "sparsegate-pilot"

    def problems(self) -> dict[str, str]:
        renamed = {"methods": "arms", "steps": "epochs"}
        # names and rates mean what they mean to the quality benchmark
        found = {
            renamed.get(name, name): f"arms: {text}" if name == "methods" else text
            for name, text in self.quality().problems().items()
        }
        if not self.name.strip():
            found["name"] = "name must not be empty"
        if self.data.task != "classification":
            found["data"] = "data.task must be classification: a goal of accuracy needs labels"
        if self.search_size is not None and self.search_size not in self.data.train_sizes:
            found["search_size"] = f"search_size must be one of data.train_sizes, got {self.search_size}"
        if self.trainings_per_year < 1:
            found["trainings_per_year"] = f"trainings_per_year must be at least 1, got {self.trainings_per_year}"
        if self.targets.money is not None and not self.prices:
            found["targets"] = "targets.money needs prices"
        return found

    @property
    def sizes(self) -> tuple[int, ...]:
        """The sizes of the learning curve, rising."""
        return tuple(sorted(self.data.train_sizes))

    def quality(self) -> QualityConfig:
        """Return what the runs share, as the quality benchmark has it."""
        names = {*self.arms, *(arm.partition(":")[0] for arm in self.arms)}
        known = {
            name: rates
            for name, rates in DEFAULT_RATES.items()
            if name in names and name.partition(":")[0] not in self.learning_rates
        }
        return QualityConfig(
            data={self.name: self.data},
            methods=self.arms,
            learning_rates={**known, **self.learning_rates},
            output=f"{self.output}/runs.jsonl",
            reference=self.reference,
            model=self.model,
            seeds=self.seeds,
            epochs=self.epochs,
            batch_size=self.batch_size,
            evaluate_at=(),
            evaluation_batch_size=self.evaluation_batch_size,
            general_text=self.general_text,
            device=self.device,
            threads=self.threads,
        )

    def quick(self) -> PilotConfig:
        """Return a pilot of minutes: the reference and the first arm of ours, one small size, one seed, one rate each.

        It asks fewer samples and prompts, and has an output folder of its own, beside that of the whole pilot.
        """
        quality, data = self.quality(), self.data
        ours = next((arm for arm in self.arms if arm.partition(":")[0] == OURS), self.arms[0])
        arms = tuple(dict.fromkeys((self.reference, ours)))
        middle = {arm: sorted(quality.rates(arm))[(len(quality.rates(arm)) - 1) // 2] for arm in arms}
        limit = self.safety.limit
        return replace(
            self,
            output=f"{self.output}-quick",
            arms=arms,
            whole=False,
            data=replace(
                data,
                train_sizes=(min(QUICK_FACTOR * self.sizes[0], self.sizes[-1]),),
                evaluation_size=min(data.evaluation_size, QUICK_EVALUATION),
            ),
            learning_rates={arm: (rate,) for arm, rate in middle.items()},
            search_size=None,
            seeds=self.seeds[:1],
            safety=replace(self.safety, limit=QUICK_PROMPTS if limit is None else min(limit, QUICK_PROMPTS)),
        )
