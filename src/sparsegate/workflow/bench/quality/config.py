"""What a quality benchmark is asked to do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from sparsegate.config import EMBEDDED_MODEL, DataConfig, EvaluationConfig, RefreshConfig, TrainingConfig
from sparsegate.contracts import Task
from sparsegate.errors import did_you_mean
from sparsegate.workflow.bench.methods import METHODS
from sparsegate.workflow.bench.options import method_problems, usable_threads


@dataclass(frozen=True)
class QualityData:
    """One data set, trained on in one or more sizes.

    Args:
        train: JSONL, CSV or Parquet file, ``hf:`` or ``builtin:`` source.
        evaluation: File to evaluate on; None holds the evaluation samples back from ``train``.
        task: ``classification`` is judged by accuracy, ``generation`` by the perplexity of the responses.
        prompt_column: Column with what the user writes.
        response_column: Column with what the model must answer.
        id_column: Column with unique ids; None derives ids from the content.
        system_prompt: System message put before every prompt; None uses none.
        train_sizes: Numbers of training examples; each is a benchmark of its own.
        validation_size: Examples of ``train``, apart from all others, by which learning rates are chosen.
        evaluation_size: Examples that the results are measured on.
        max_tokens: Longest sample in tokens; longer prompts are cut at the front.
    """

    train: str
    evaluation: str | None = None
    task: Task = "classification"
    prompt_column: str = "prompt"
    response_column: str = "response"
    id_column: str | None = None
    system_prompt: str | None = None
    train_sizes: tuple[int, ...] = (100, 1000)
    validation_size: int = 200
    evaluation_size: int = 500
    max_tokens: int = DataConfig.max_tokens

    def problems(self) -> dict[str, str]:
        return _found(
            train_sizes=_positive_and_distinct("train_sizes", self.train_sizes),
            validation_size=_at_least_1("validation_size", self.validation_size),
            evaluation_size=_at_least_1("evaluation_size", self.evaluation_size),
            max_tokens=None if self.max_tokens >= 8 else f"max_tokens must be at least 8, got {self.max_tokens}",
        )


@dataclass(frozen=True)
class GeneralText:
    """Text outside all tasks; what a method forgets is the rise of its perplexity.

    Args:
        source: A ``.txt`` file, or any source of rows.
        column: Column with the text; a ``.txt`` file has none.
        tokens: Tokens that are scored, from the start of the text.
        window_tokens: Each part of so many tokens is scored by itself.
    """

    source: str
    column: str = "text"
    tokens: int = 20_000
    window_tokens: int = 256

    def problems(self) -> dict[str, str]:
        return _found(
            tokens=_at_least_1("tokens", self.tokens),
            window_tokens=None if self.window_tokens >= 2 else f"window_tokens must be >= 2, got {self.window_tokens}",
        )


@dataclass(frozen=True)
class SkillsData:
    """Questions outside all tasks, asked before and after training.

    Args:
        source: Any source of rows.
        task: ``classification`` is scored by accuracy, ``generation`` by the perplexity of the responses.
        prompt_column: Column with the question.
        response_column: Column with the answer.
        max_tokens: Longest question with its answer, in tokens.
    """

    source: str
    task: Task = "classification"
    prompt_column: str = "prompt"
    response_column: str = "response"
    max_tokens: int = DataConfig.max_tokens


@dataclass(frozen=True)
class QualityConfig:
    """Everything that decides a quality benchmark. Every method gets the same samples in the same order.

    Args:
        data: Data sets by name.
        methods: Methods as ``sparsegate bench`` knows them.
        learning_rates: Rates that the search begins with, for a method or for all methods of a name (``sparse``); it
            goes on where the best is at an end. One rate is taken as it is.
        output: JSON Lines file with a line for each finished run; what stands in it is not run again.
        reference: The method that the others are compared with.
        model: Any source of a base model.
        seeds: Seeds of the training examples, their order, and all that a method draws; rates are chosen on the first.
        steps: Optimizer steps of each run; None where ``epochs`` is given.
        epochs: Passes over the training examples; None where ``steps`` is given.
        batch_size: Samples in a step.
        warmup_fraction: Share of the steps over which the learning rate rises; it falls to zero by a cosine afterwards.
        gradient_clip: Largest gradient norm.
        evaluate_at: Shares of the steps after which the model is evaluated, besides the end.
        evaluation_batch_size: Samples scored at once.
        general_text: Text to measure forgetting on; None measures none.
        general_skills: Questions to measure forgetting on; None asks none.
        refresh: How far a method with ``refresh=N`` changes its choice; ``every_steps`` plays no part.
        device: Where to train.
        threads: Processor threads of each run.
    """

    data: Mapping[str, QualityData]
    methods: tuple[str, ...]
    learning_rates: Mapping[str, tuple[float, ...]]
    output: str
    reference: str = "lora"
    model: str = EMBEDDED_MODEL
    seeds: tuple[int, ...] = (0, 1, 2)
    steps: int | None = None
    epochs: int | None = None
    batch_size: int = TrainingConfig.batch_size
    warmup_fraction: float = TrainingConfig.warmup_fraction
    gradient_clip: float = TrainingConfig.gradient_clip
    evaluate_at: tuple[float, ...] = (0.25, 0.5, 0.75)
    evaluation_batch_size: int = EvaluationConfig.batch_size
    general_text: GeneralText | None = None
    general_skills: SkillsData | None = None
    refresh: RefreshConfig = field(default_factory=RefreshConfig)
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = field(default_factory=usable_threads)

    def problems(self) -> dict[str, str]:
        length = self.epochs if self.steps is None else self.steps
        unknown = self.reference not in self.methods
        return _found(
            data=None if self.data else "data names no data set",
            methods="; ".join(method_problems(self.methods, list(METHODS))) or None,
            learning_rates=self._rate_problem(),
            model=f"model {self.model} has no tokenizer; choose one that reads text"
            if self.model.startswith("random:")
            else None,
            reference=f"reference '{self.reference}' is not a method{did_you_mean(self.reference, self.methods)}"
            if unknown and self.methods
            else None,
            seeds=_distinct("seeds", self.seeds),
            steps="give one of steps and epochs" if (self.steps is None) == (self.epochs is None) else None,
            epochs=None if length is None else _at_least_1("steps or epochs", length),
            batch_size=_at_least_1("batch_size", self.batch_size),
            warmup_fraction=None if 0 <= self.warmup_fraction <= 1 else "warmup_fraction must be in [0, 1]",
            gradient_clip=None if self.gradient_clip > 0 else "gradient_clip must be above 0",
            evaluate_at=None if all(0 < x <= 1 for x in self.evaluate_at) else "evaluate_at must lie in (0, 1]",
            evaluation_batch_size=_at_least_1("evaluation_batch_size", self.evaluation_batch_size),
            threads=_at_least_1("threads", self.threads),
        )

    def rates(self, method: str) -> tuple[float, ...]:
        """Return the learning rates to choose from: those of the method itself, else those of its name."""
        own = self.learning_rates.get(method)
        return self.learning_rates.get(method.partition(":")[0], ()) if own is None else own

    def num_steps(self, size: int) -> int:
        """Return the optimizer steps of a run on ``size`` examples."""
        return self.steps if self.steps is not None else (self.epochs or 0) * -(-size // self.batch_size)

    def _rate_problem(self) -> str | None:
        known = {*self.methods, *(method.partition(":")[0] for method in self.methods)}
        for name in self.learning_rates:
            if name not in known:
                return f"learning_rates: no method is called '{name}'{did_you_mean(name, known)}"
        for method in self.methods:
            rates = self.rates(method)
            if not rates or len(set(rates)) < len(rates) or not all(0 < rate <= 1 for rate in rates):
                return f"learning_rates of '{method}' must be one or more distinct rates in (0, 1], got {list(rates)}"
        return None


def _found(**problems: str | None) -> dict[str, str]:
    return {name: problem for name, problem in problems.items() if problem}


def _at_least_1(name: str, value: int) -> str | None:
    return None if value >= 1 else f"{name} must be at least 1, got {value}"


def _distinct(name: str, values: tuple[int, ...]) -> str | None:
    return None if values and len(set(values)) == len(values) else f"{name} must be one or more distinct numbers"


def _positive_and_distinct(name: str, values: tuple[int, ...]) -> str | None:
    return _distinct(name, values) or next((text for value in values if (text := _at_least_1(name, value))), None)
