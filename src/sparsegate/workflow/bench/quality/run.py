"""The protocol: the base model, then for each data set and size the learning rates, then all seeds at the best."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sparsegate.contracts import Sample, Task, canonical_json
from sparsegate.data import label_set
from sparsegate.files import sha256_bytes
from sparsegate.models import BaseModel, resolve
from sparsegate.workflow.bench.process import ask, worker_command
from sparsegate.workflow.bench.quality.config import QualityConfig, QualityData
from sparsegate.workflow.bench.quality.job import BASE, GeneralSet, JudgedSet, Outcome, QualityJob
from sparsegate.workflow.bench.quality.records import Purpose, Results, RunRecord
from sparsegate.workflow.bench.quality.samples import Split, draw, general_texts, skills_samples, split
from sparsegate.workflow.bench.run import check_choices, describe_environment
from sparsegate.workflow.inputs import check_writable
from sparsegate.workflow.lock import model_lock

_LOG = logging.getLogger(__name__)
_WORKER = worker_command("sparsegate.workflow.bench.quality.worker")
# what else may change between two runs that count as the same
_PASSING = frozenset({"date", "load_average", "memory_bytes"})

Ask = Callable[[QualityJob], Outcome | str]


def ask_process(job: QualityJob) -> Outcome | str:
    """Run a job in a process of its own."""
    return ask(asdict(job), worker=_WORKER, read=Outcome.from_json)


@dataclass(frozen=True)
class Setting:
    """A data set at one size, with all runs on it.

    Args:
        data: Name of the data set.
        size: Training examples.
        task: Its task.
        base: The base model's run.
        searches: The runs by which learning rates were chosen, in order.
        finals: The runs of all seeds at the chosen rates.
    """

    data: str
    size: int
    task: Task
    base: RunRecord
    searches: tuple[RunRecord, ...]
    finals: tuple[RunRecord, ...]


def run_quality(config: QualityConfig, *, ask_one: Ask = ask_process) -> list[Setting]:
    """Run what the results file does not hold yet, one process at a time.

    Args:
        config: The benchmark.
        ask_one: Runs a job.

    Raises:
        UsageError: If configuration, data or model can't be used; nothing has run.
        LockedError: If another benchmark writes the same results.
    """
    output = Path(config.output)
    check_writable(output.parent)
    check_choices(config.methods, config.device)
    splits = {name: split(name, data) for name, data in config.data.items()}
    base = resolve(config.model)
    output.parent.mkdir(parents=True, exist_ok=True)
    with model_lock(output.parent, output.name):
        bench = _Benchmark(config, base, Results(output), ask_one)
        return [setting for name, data in config.data.items() for setting in bench.run_data(name, data, splits[name])]


class _Benchmark:
    """Runs or recalls the runs of one configuration."""

    def __init__(self, config: QualityConfig, base: BaseModel, results: Results, ask_one: Ask) -> None:
        about = {"model": base.source, "model_digest": base.digest}
        self._config, self._base, self._results, self._ask = config, base, results, ask_one
        self._environment = describe_environment(config.device, config.threads, about)
        text, skills = config.general_text, config.general_skills
        self._general = GeneralSet(general_texts(text), text.tokens, text.window_tokens) if text else None
        self._skills: JudgedSet | None = None
        if skills is not None:
            samples = skills_samples(skills)
            labels = label_set(samples) if skills.task == "classification" else ()
            self._skills = _judged(skills.task, samples, labels, None, skills.max_tokens)
        self._left = sum(1 + len(data.train_sizes) * self._runs_of_a_size() for data in config.data.values())
        self._seconds: list[float] = []

    def _runs_of_a_size(self) -> int:
        searches = [len(self._config.rates(method)) for method in self._config.methods]
        return sum(count for count in searches if count > 1) + len(searches) * len(self._config.seeds)

    def run_data(self, name: str, data: QualityData, parts: Split) -> list[Setting]:
        evaluation = _judged(data.task, parts.evaluation, parts.labels, data.system_prompt, data.max_tokens)
        validation = _judged(data.task, parts.validation, parts.labels, data.system_prompt, data.max_tokens)
        base_job = self._job(BASE, 0.0, seed=0, steps=0, train=[], judged=evaluation)
        base = self._run("base", name, 0, base_job)
        settings = []
        for size in data.train_sizes:
            searches: list[RunRecord] = []
            chosen: dict[str, float] = {}
            for method in self._config.methods:
                rate, tried = self._choose_rate(name, size, method, parts, validation)
                searches += tried
                if rate is None:
                    self._left -= len(self._config.seeds)
                else:
                    chosen[method] = rate
            finals = [  # methods in turn, so that a drift of the machine is shared by all
                self._run("final", name, size, self._training(method, rate, seed, size, parts, evaluation))
                for seed in self._config.seeds
                for method, rate in chosen.items()
            ]
            settings.append(Setting(name, size, data.task, base, tuple(searches), tuple(finals)))
        return settings

    def _choose_rate(
        self, name: str, size: int, method: str, parts: Split, validation: JudgedSet
    ) -> tuple[float | None, list[RunRecord]]:
        """Return the rate that does best on the validation samples with the first seed; None if all fail."""
        rates = self._config.rates(method)
        if len(rates) == 1:
            return rates[0], []
        tried = []
        for rate in rates:
            job = self._training(method, rate, self._config.seeds[0], size, parts, validation)
            tried.append(self._run("search", name, size, replace(job, judge_at=[job.steps], general=None, skills=None)))
        return best_rate(tried, task=validation.task), tried

    def _training(self, method: str, rate: float, seed: int, size: int, parts: Split, judged: JudgedSet) -> QualityJob:
        train = draw(parts.pool, size, seed=seed)
        return self._job(method, rate, seed=seed, steps=self._config.num_steps(size), train=train, judged=judged)

    def _job(
        self, method: str, rate: float, *, seed: int, steps: int, train: list[Sample], judged: JudgedSet
    ) -> QualityJob:
        config = self._config
        return QualityJob(
            model=str(self._base.folder),
            device=config.device,
            threads=config.threads,
            method=method,
            learning_rate=rate,
            seed=seed,
            steps=steps,
            batch_size=config.batch_size,
            warmup_fraction=config.warmup_fraction,
            gradient_clip=config.gradient_clip,
            refresh=asdict(config.refresh),
            train=[asdict(sample) for sample in train],
            judged=judged,
            judge_at=sorted({*(min(steps, max(1, round(share * steps))) for share in config.evaluate_at), steps}),
            judge_batch_size=config.evaluation_batch_size,
            general=self._general,
            skills=self._skills,
        )

    def _run(self, purpose: Purpose, data: str, size: int, job: QualityJob) -> RunRecord:
        """Return a run's record: from the results file, or from a process."""
        key = self._key(job)
        record = self._results.get(key)
        self._left -= 1
        recalled = record is not None
        if record is None:
            started = time.perf_counter()
            outcome = self._ask(job)
            failed = isinstance(outcome, str)
            record = RunRecord(
                key=key,
                purpose=purpose,
                data=data,
                size=size,
                method=job.method,
                learning_rate=job.learning_rate,
                seed=job.seed,
                error=str(outcome) if failed else "",
                wall_seconds=time.perf_counter() - started,
                outcome=None if isinstance(outcome, str) else asdict(outcome),
                environment=self._environment,
            )
            self._results.add(record)
        self._seconds.append(record.wall_seconds)
        how = "recalled" if recalled else f"{record.wall_seconds:.0f} s"
        _LOG.info("%s: %s (%s); %s", record, _in_words(record), how, self._time_left())
        return record

    def _key(self, job: QualityJob) -> str:
        decides = {**asdict(job), "model": self._base.digest}
        where = {name: value for name, value in self._environment.items() if name not in _PASSING}
        return sha256_bytes(canonical_json([decides, where]).encode())

    def _time_left(self) -> str:
        minutes = self._left * sum(self._seconds) / len(self._seconds) / 60
        return f"runs left: {self._left}, about {minutes:.0f} min"


def best_rate(tried: list[RunRecord], *, task: Task) -> float | None:
    """Return the rate with the best validation figure, of equals the one of the lowest loss; None if all failed."""

    def rank(found: Outcome) -> tuple[float, float]:
        return (-found.end.quality if task == "classification" else found.end.quality, found.end.nll_nats)

    ranked = [(rank(record.found), record.learning_rate) for record in tried if record.found is not None]
    return min(ranked)[1] if ranked else None


def _judged(
    task: Task, samples: Sequence[Sample], labels: Sequence[str], system_prompt: str | None, max_tokens: int
) -> JudgedSet:
    return JudgedSet(task, [asdict(sample) for sample in samples], list(labels), system_prompt, max_tokens)


def _in_words(record: RunRecord) -> str:
    found = record.found
    return f"failed: {record.error}" if found is None else f"{found.end.quality:.3f}"
