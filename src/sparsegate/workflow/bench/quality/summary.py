"""What a quality benchmark found: means over seeds with their intervals, compared with the reference seed by seed."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from sparsegate.contracts import JSON, Interval, Task
from sparsegate.errors import ExitCode
from sparsegate.evaluation.means import student_t
from sparsegate.workflow.bench.quality.config import QualityConfig
from sparsegate.workflow.bench.quality.job import Outcome
from sparsegate.workflow.bench.quality.records import RunRecord
from sparsegate.workflow.bench.quality.run import Setting


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Args:
        mean: The mean.
        interval: Its interval by Student's t; None with one seed.
        n: Seeds behind it.
    """

    mean: float
    interval: Interval | None
    n: int


@dataclass(frozen=True)
class MethodRow:
    """One method on one data set at one size.

    Args:
        method: The method.
        learning_rate: The chosen rate.
        at_edge: Whether it is the lowest or highest that was tried, so that a better one may lie beyond.
        quality: Accuracy or perplexity at the end.
        difference: Quality less that of the reference, with equal seeds.
        train_seconds: Setting up and training.
        target_seconds: The same, up to the first evaluation that is as good as the reference's last with the equal
            seed; None if a seed never gets there.
        target_tokens: Tokens trained on until then.
        target_time_ratio: ``target_seconds`` over that of the reference.
        reached: Seeds that got there.
        peak_memory_bytes: Highest of all seeds.
        forgetting: Perplexity of the general text less that of the base model.
        skills_change: Figure of the general skills less that of the base model.
        curve: Mean seconds and quality of each evaluation.
    """

    method: str
    learning_rate: float
    at_edge: bool
    quality: Estimate
    difference: Estimate | None
    train_seconds: float
    target_seconds: float | None
    target_tokens: float | None
    target_time_ratio: float | None
    reached: int
    peak_memory_bytes: int
    forgetting: Estimate | None
    skills_change: Estimate | None
    curve: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class SettingSummary:
    """All methods on one data set at one size; ``base_quality`` is that of the untrained model."""

    data: str
    size: int
    task: Task
    base_quality: float | None
    rows: tuple[MethodRow, ...]


@dataclass(frozen=True)
class QualityReport:
    """Everything that was found.

    Args:
        config: The benchmark.
        settings: A summary for each data set and size.
        overall: For each method, its difference to the reference, averaged over all classification settings.
        failures: The runs that failed, in words.
        missing: Methods without a figure, in words.
        wall_seconds: Time of all processes together.
        environment: Where the last run ran.
    """

    config: QualityConfig
    settings: tuple[SettingSummary, ...]
    overall: Mapping[str, Estimate]
    failures: tuple[str, ...]
    missing: tuple[str, ...]
    wall_seconds: float
    environment: Mapping[str, JSON]

    @property
    def exit_code(self) -> ExitCode:
        return ExitCode.ERROR if self.missing else ExitCode.PASSED

    def to_json(self) -> dict[str, JSON]:
        return asdict(self)


def summarise(config: QualityConfig, settings: Sequence[Setting]) -> QualityReport:
    """Summarise all runs."""
    records = [record for one in settings for record in (one.base, *one.searches, *one.finals)]
    distinct = list({record.key: record for record in records}.values())
    missing = {str(record) for record in distinct if record.error and record.purpose != "search"}
    for one in settings:
        ran = {record.method for record in one.finals}
        missing |= {
            f"{one.data} {one.size}, {method}: no learning rate worked"
            for method in config.methods
            if method not in ran
        }
    return QualityReport(
        config=config,
        settings=tuple(_summarise(config, one) for one in settings),
        overall=_overall(config, settings),
        failures=tuple(f"{record}: {record.error}" for record in distinct if record.error),
        missing=tuple(sorted(missing)),
        wall_seconds=sum(record.wall_seconds for record in distinct),
        environment=records[-1].environment,
    )


def _summarise(config: QualityConfig, setting: Setting) -> SettingSummary:
    base = setting.base.found
    rows = [_row(config, setting, method) for method in config.methods]
    return SettingSummary(
        setting.data,
        setting.size,
        setting.task,
        None if base is None else base.end.quality,
        tuple(row for row in rows if row is not None),
    )


def _row(config: QualityConfig, setting: Setting, method: str) -> MethodRow | None:
    found, reference = _by_seed(setting, method), _by_seed(setting, config.reference)
    if not found:
        return None
    tried = {record.learning_rate for record in setting.searches if record.method == method}
    rate = next(record.learning_rate for record in setting.finals if record.method == method)
    common = sorted(found.keys() & reference.keys())
    times = _times_to_target(found, reference, setting.task)
    reference_times = _times_to_target(reference, reference, setting.task)
    target_seconds = _mean_of_all([times[seed][0] for seed in times], len(common))
    own = _mean_of_all([seconds for seconds, _ in reference_times.values()], len(common))
    points = zip(*(outcome.points for outcome in found.values()), strict=True)
    return MethodRow(
        method=method,
        learning_rate=rate,
        at_edge=len(tried) > 1 and rate in {min(tried), max(tried)},
        quality=estimate([outcome.end.quality for outcome in found.values()], share=setting.task == "classification"),
        difference=estimate([found[seed].end.quality - reference[seed].end.quality for seed in common])
        if common and method != config.reference
        else None,
        train_seconds=statistics.fmean(outcome.end.seconds for outcome in found.values()),
        target_seconds=target_seconds,
        target_tokens=_mean_of_all([tokens for _, tokens in times.values()], len(common)),
        target_time_ratio=target_seconds / own if target_seconds is not None and own else None,
        reached=len(times),
        peak_memory_bytes=max(outcome.peak_memory_bytes for outcome in found.values()),
        forgetting=_change(found, setting.base, lambda outcome: outcome.general_perplexity),
        skills_change=_change(found, setting.base, lambda outcome: outcome.skills),
        curve=tuple(
            (statistics.fmean(p.seconds for p in same), statistics.fmean(p.quality for p in same)) for same in points
        ),
    )


def estimate(values: Sequence[float], *, share: bool = False) -> Estimate:
    """Return the mean of one figure for each seed, with its interval; that of a share ends at 0 and 1."""
    within = (0.0, 1.0) if share else (-math.inf, math.inf)
    interval = student_t(values, within=within) if len(values) > 1 else None
    return Estimate(statistics.fmean(values), interval, len(values))


def _by_seed(setting: Setting, method: str) -> dict[int, Outcome]:
    runs = [(record.seed, record.found) for record in setting.finals if record.method == method]
    return {seed: found for seed, found in runs if found is not None}


def _times_to_target(
    found: Mapping[int, Outcome], reference: Mapping[int, Outcome], task: Task
) -> dict[int, tuple[float, int]]:
    """Return seconds and tokens of each seed that gets as good as the reference is at its end with this seed."""
    sign = 1 if task == "classification" else -1
    times = {}
    for seed in found.keys() & reference.keys():
        target = reference[seed].end.quality
        point = next((p for p in found[seed].points if sign * p.quality >= sign * target), None)
        if point is not None:
            times[seed] = (point.seconds, point.tokens)
    return times


def _mean_of_all(values: Sequence[float], expected: int) -> float | None:
    return statistics.fmean(values) if values and len(values) == expected else None


def _change(
    found: Mapping[int, Outcome], base: RunRecord, figure: Callable[[Outcome], float | None]
) -> Estimate | None:
    before = None if base.found is None else figure(base.found)
    after = [figure(outcome) for outcome in found.values()]
    if before is None:
        return None
    return estimate([value - before for value in after if value is not None])


def _overall(config: QualityConfig, settings: Sequence[Setting]) -> dict[str, Estimate]:
    """Return, for each method that is whole, the mean over classification settings of its difference, by seeds."""
    classified = [setting for setting in settings if setting.task == "classification"]
    overall = {}
    for method in config.methods:
        means = []
        for seed in config.seeds:
            pairs = [(_by_seed(one, method).get(seed), _by_seed(one, config.reference).get(seed)) for one in classified]
            gaps = [ours.end.quality - theirs.end.quality for ours, theirs in pairs if ours and theirs]
            if gaps and len(gaps) == len(classified):
                means.append(statistics.fmean(gaps))
        if method != config.reference and len(means) == len(config.seeds):
            overall[method] = estimate(means)
    return overall
