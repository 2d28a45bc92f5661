"""What a benchmark is asked to do, checked before anything runs."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Literal, get_args

from sparsegate.config import DEFAULT_SELECTOR, EMBEDDED_MODEL, PRESETS
from sparsegate.contracts import Allocation, SupportKind
from sparsegate.errors import ConfigError, UsageError, did_you_mean

DEFAULT_METHODS = (
    "full",
    "full-ours",
    "lora",
    "lora-ours",
    "rslora",
    "dora",
    "adalora",
    "shira",
    "supertuning",
    "sparse:element",
    "sparse:column",
    "sparse:column:plain_loss",
    "sparse:default",
    "sparse:lean",
)


@dataclass(frozen=True)
class SparseSetting:
    """How our method trains: what stands after ``sparse:`` in a method's name.

    Args:
        support: Shape of the trained set.
        density: Share of the entries of each trained weight, in (0, 1].
        cut: Share of the layers, from the bottom, that stays frozen (``frozen_depth``), in [0, 1), or ``auto``.
        allocation: How the entries are shared out among weights: ``uniform``, ``rank`` or ``global``.
        selector: How entries are scored.
        refresh: Refresh the supports after every so many steps, whatever their gradient retention; 0 never does.
        trim: Give freed memory back during each step (``trim_heap``).
        cached: Feed the first trained layer from the prefix cache; the measured steps find every batch in it.
        plain_loss: The model's own loss over all positions instead of ours, to show what our loss contributes.
    """

    support: SupportKind = "column"
    density: float = 0.05
    cut: float | Literal["auto"] = 0.0
    allocation: Allocation = "uniform"
    selector: str = DEFAULT_SELECTOR
    refresh: int = 0
    trim: bool = False
    cached: bool = False
    plain_loss: bool = False


def parse_sparse(text: str) -> SparseSetting:
    """Read what stands after ``sparse:``.

    That is ``SUPPORT`` or a preset, as ``training.preset`` names it (with kept outputs), then any of ``:density=D``,
    ``:cut=F`` (or ``auto``), ``:allocation=NAME``, ``:selector=NAME``, ``:refresh=N``, ``:trim``,
    ``:cached`` and ``:plain_loss``.

    Raises:
        UsageError: If it is no such setting.

    Example:
        >>> parse_sparse("column:density=0.01:cached:cut=0.5").density
        0.01
        >>> parse_sparse("lean").cut
        0.667
    """
    start, *parts = text.split(":")
    kinds = get_args(SupportKind)
    preset = PRESETS.get(start)
    if preset is None and start not in kinds:
        known = (*kinds, *PRESETS)
        raise UsageError(f"unknown support '{start}'{did_you_mean(start, known)}")
    values: dict[str, object] = {}
    settings = [entry.name for entry in fields(SparseSetting) if entry.name != "support"]
    for part in parts:
        name, equals, value = part.partition("=")
        if name not in settings:
            raise UsageError(f"unknown setting '{name}'{did_you_mean(name, settings)}")
        if name in values:
            raise UsageError(f"'{name}' stands twice; keep one")
        values[name] = _setting(name, value if equals else None)
    if preset is None:
        base = SparseSetting(support=start)  # type: ignore[arg-type]  # it is one of them
    else:
        base = SparseSetting(density=preset.density, cut=preset.frozen_depth, selector=preset.selector, cached=True)
    setting = replace(base, **values)  # type: ignore[arg-type]  # each value was read by its field's type
    if not 0 < setting.density <= 1:
        raise UsageError(f"density must be in (0, 1], got {setting.density:g}")
    if setting.cut != "auto" and not 0 <= setting.cut < 1:
        raise UsageError(f"cut must be in [0, 1), or auto, got {setting.cut:g}")
    allocations = get_args(Allocation)
    if setting.allocation not in allocations:
        raise UsageError(f"unknown allocation '{setting.allocation}'{did_you_mean(setting.allocation, allocations)}")
    if setting.refresh < 0:
        raise UsageError(f"refresh must be at least 0, got {setting.refresh}")
    if setting.cached and (setting.cut == 0 or setting.plain_loss):
        raise UsageError("cached needs a cut above 0, and our loss")
    return setting


def _setting(name: str, value: str | None) -> object:
    if name in {"cached", "plain_loss", "trim"}:
        if value is not None:
            raise UsageError(f"{name} takes no value, got '{value}'")
        return True
    if not value:
        raise UsageError(f"{name} needs a value, such as {name}={getattr(SparseSetting, name)}")
    if name in {"selector", "allocation"} or (name, value) == ("cut", "auto"):
        return value
    try:
        return int(value) if name == "refresh" else float(value)
    except ValueError:
        kind = {"refresh": "whole number", "cut": "number or auto"}.get(name, "number")
        raise UsageError(f"{name} must be a {kind}, got '{value}'") from None


def usable_threads() -> int:
    """Return the number of processor threads that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@dataclass(frozen=True)
class BenchOptions:
    """The work that every method is given.

    Args:
        methods: Methods in the order in which they run.
        model: Any source of a base model, or ``random:llama-tiny`` or ``random:llama-1b`` (random weights).
        device: Where to train.
        dtype: Type of the base model's weights.
        batch_size: Samples in a batch.
        tokens: Tokens in a sample.
        supervised: Tokens of them, at the end, that the loss is taken on.
        warmup: Steps before the measured ones; each has its own batch, and the measured steps repeat these batches.
        steps: Measured steps.
        rounds: How often all methods are measured, in turn; the median over the rounds is reported.
        threads: Processor threads of each process.
        seed: Seed of the batches and of everything else that is random.
    """

    methods: tuple[str, ...] = DEFAULT_METHODS
    model: str = EMBEDDED_MODEL
    device: Literal["cpu", "cuda"] = "cpu"
    dtype: Literal["float32", "bfloat16"] = "float32"
    batch_size: int = 8
    tokens: int = 128
    supervised: int = 8
    warmup: int = 2
    steps: int = 6
    rounds: int = 1
    threads: int = field(default_factory=usable_threads)
    seed: int = 0


def check_options(options: BenchOptions, known_methods: Sequence[str]) -> None:
    """Check everything that can be checked before the first process starts.

    Raises:
        ConfigError: With every problem.
    """
    problems = [
        f"{name} must be at least 1, got {getattr(options, name)}"
        for name in ("batch_size", "supervised", "warmup", "steps", "rounds", "threads")
        if getattr(options, name) < 1
    ]
    if options.tokens <= options.supervised:
        problems.append(f"tokens must be above supervised, got {options.tokens} and {options.supervised}")
    problems += method_problems(options.methods, known_methods)
    if problems:
        raise ConfigError(problems)


def method_problems(methods: Sequence[str], known_methods: Sequence[str]) -> list[str]:
    """Say what is wrong with the methods that are asked for, a line each."""
    problems = [] if methods else [f"methods names none; choices: {', '.join(known_methods)}"]
    problems += [
        f"methods: '{method}' stands twice; keep one"
        for index, method in enumerate(methods)
        if method in methods[:index]
    ]
    for method in methods:
        name, colon, setting = method.partition(":")
        if name not in known_methods:
            problems.append(f"methods: unknown method '{name}'{did_you_mean(name, known_methods)}")
        elif name == "sparse":
            try:
                parse_sparse(setting)
            except UsageError as error:
                problems.append(f"methods: '{method}': {error}")
        elif colon:
            problems.append(f"methods: '{method}': {name} takes no settings; only sparse does")
    return problems
