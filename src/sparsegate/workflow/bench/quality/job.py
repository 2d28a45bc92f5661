"""What one run is given, and what it gives back."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sparsegate.contracts import JSON, Task
from sparsegate.reports.decode import decode

BASE = "base"  # the method that trains nothing


@dataclass(frozen=True)
class JudgedSet:
    """Samples that a model is judged on.

    Args:
        task: ``classification`` is judged by accuracy, ``generation`` by the perplexity of the responses.
        samples: Fields of :class:`~sparsegate.contracts.Sample`.
        labels: Labels to choose from; empty for generation.
        system_prompt: System message before every prompt.
        max_tokens: Longest sample in tokens.
    """

    task: Task
    samples: list[dict[str, JSON]]
    labels: list[str]
    system_prompt: str | None
    max_tokens: int


@dataclass(frozen=True)
class GeneralSet:
    """General text: its parts of ``window_tokens`` each, ``tokens`` in all, are scored."""

    texts: list[str]
    tokens: int
    window_tokens: int


@dataclass(frozen=True)
class Probe:
    """What else the finished model is asked; neither its time nor its memory is counted.

    Args:
        validation: Samples beside the judged ones; None for none.
        red_team: Harmful prompts, answered freely; and by labels, where the task has them.
        benign: Harmless prompts, answered freely.
        max_new_tokens: Longest free answer in tokens.
        keep: Say also what the user would keep: the size of the files, and where the mask lies.
    """

    validation: JudgedSet | None
    red_team: list[str]
    benign: list[str]
    max_new_tokens: int
    keep: bool


@dataclass(frozen=True)
class QualityJob:
    """One run: what is trained how, and when it is judged on what.

    A run that searches for a learning rate is judged on validation samples; it is not given the evaluation samples.

    Args:
        model: Folder of the base model.
        device: Where to train.
        threads: Processor threads.
        method: A method of the benchmark, or ``base``, which trains nothing.
        learning_rate: Peak learning rate.
        seed: Seed of the order and of all that the method draws.
        steps: Optimizer steps.
        batch_size: Samples in a step.
        warmup_fraction: Share of the steps over which the learning rate rises.
        gradient_clip: Largest gradient norm.
        refresh: Fields of :class:`~sparsegate.config.RefreshConfig`.
        train: Training samples.
        judged: What the model is judged on.
        judge_at: Steps after which it is judged, rising; the last is the end.
        judge_batch_size: Samples scored at once.
        general: General text, judged at the end; None for none.
        skills: General skills, judged at the end; None for none.
        probe: What else is asked at the end; None for nothing.
    """

    model: str
    device: str
    threads: int
    method: str
    learning_rate: float
    seed: int
    steps: int
    batch_size: int
    warmup_fraction: float
    gradient_clip: float
    refresh: dict[str, JSON]
    train: list[dict[str, JSON]]
    judged: JudgedSet
    judge_at: list[int]
    judge_batch_size: int
    general: GeneralSet | None
    skills: JudgedSet | None
    probe: Probe | None = None

    @classmethod
    def from_json(cls, job: Mapping[str, JSON]) -> QualityJob:
        general = GeneralSet(**job["general"]) if job["general"] else None
        skills = JudgedSet(**job["skills"]) if job["skills"] else None
        probe = job.get("probe")
        if probe:
            validation = JudgedSet(**probe["validation"]) if probe["validation"] else None
            probe = Probe(**{**probe, "validation": validation})
        judged = JudgedSet(**job["judged"])
        return cls(**{**job, "judged": judged, "general": general, "skills": skills, "probe": probe})


@dataclass(frozen=True)
class Point:
    """How good a model was after some steps.

    Args:
        step: Optimizer steps.
        seconds: Time spent on setting up and training, evaluation excluded.
        tokens: Real tokens trained on.
        quality: Accuracy, or perplexity of the responses.
        nll_nats: Mean negative log-likelihood of a token of the responses.
    """

    step: int
    seconds: float
    tokens: int
    quality: float
    nll_nats: float


@dataclass(frozen=True)
class Answers:
    """What a model said to each sample of a set.

    Args:
        labels: Index of the label chosen for each; empty for generation.
        nll_nats: Mean negative log-likelihood of a token of each expected response.
    """

    labels: tuple[int, ...]
    nll_nats: tuple[float, ...]


@dataclass(frozen=True)
class FreeAnswer:
    """A free answer, and whether the model ended it by itself."""

    text: str
    finished: bool


@dataclass(frozen=True)
class MaskCount:
    """How many of a module's ``total`` entries are trained; ``layer`` is the decoder layer's index."""

    layer: int
    module: str
    trained: int
    total: int


@dataclass(frozen=True)
class Kept:
    """What a trained model amounts to.

    Args:
        artifact_bytes: What the user keeps, as safetensors.
        state_bytes: Trained values, their gradients and moments.
        base_parameters: Entries of the base model.
        base_bytes: Its size in memory.
        mask: Where the mask lies; empty for methods that are not ours.
    """

    artifact_bytes: int
    state_bytes: int
    base_parameters: int
    base_bytes: int
    mask: tuple[MaskCount, ...]


@dataclass(frozen=True)
class Probed:
    """Answers to a :class:`Probe`, those to the judged samples among them.

    ``red_team_labels`` is empty where the task has no labels; ``kept`` is None where it was not asked.
    """

    judged: Answers
    validation: Answers | None
    red_team: tuple[FreeAnswer, ...]
    red_team_labels: tuple[int, ...]
    benign: tuple[FreeAnswer, ...]
    kept: Kept | None


@dataclass(frozen=True)
class Outcome:
    """What one run found.

    Args:
        points: How good the model was, step by step; the last is the end.
        general_perplexity: Perplexity of the general text at the end; None without one.
        skills: Accuracy or perplexity of the general skills at the end; None without any.
        selection_seconds: From the loaded model to a method that is ready to step; part of the points' seconds.
        peak_memory_bytes: Highest memory of loading, setting up and training; evaluation excluded.
        trained_parameters: Entries that were updated.
        order_sha256: Digest of the ids of all batches in their order.
        probed: Answers to the job's probe; None without one.
        energy_joules: Energy of setting up and training; None where the machine shows no counter.
    """

    points: tuple[Point, ...]
    general_perplexity: float | None
    skills: float | None
    selection_seconds: float
    peak_memory_bytes: int
    trained_parameters: int
    order_sha256: str
    probed: Probed | None = None
    energy_joules: float | None = None

    @property
    def end(self) -> Point:
        return self.points[-1]

    @classmethod
    def from_json(cls, figures: Mapping[str, Any]) -> Outcome:
        """Rebuild an outcome.

        Raises:
            ValueError: If it has no point, or its answers are not whole.
            TypeError: If it lacks a field.
        """
        points = tuple(Point(**point) for point in figures["points"])
        if not points:
            raise ValueError("an outcome without a point")
        probed = decode(Probed, figures["probed"]) if figures.get("probed") else None
        return cls(**{**figures, "points": points, "probed": probed})
