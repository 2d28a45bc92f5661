"""Runs or recalls single runs: each a process of its own, and a line of the results file."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace

from sparsegate.contracts import Sample, Task, canonical_json
from sparsegate.data import label_set
from sparsegate.files import sha256_bytes
from sparsegate.models import BaseModel
from sparsegate.workflow.bench.process import ask, worker_command
from sparsegate.workflow.bench.quality.config import QualityConfig
from sparsegate.workflow.bench.quality.job import BASE, GeneralSet, JudgedSet, Outcome, QualityJob
from sparsegate.workflow.bench.quality.records import Purpose, Results, RunRecord, run_name
from sparsegate.workflow.bench.quality.samples import Split, draw, general_texts, skills_samples
from sparsegate.workflow.bench.run import describe_environment

_LOG = logging.getLogger(__name__)
_WORKER = worker_command("sparsegate.workflow.bench.quality.worker")
# what else may change between two runs that count as the same
_PASSING = frozenset({"date", "load_average", "memory_bytes"})
_STEPS_BESIDE = 20  # loading and judging take about as long as so many steps

Ask = Callable[[QualityJob], Outcome | str]


def ask_process(job: QualityJob) -> Outcome | str:
    """Run a job in a process of its own."""
    return ask(asdict(job), worker=_WORKER, read=Outcome.from_json)


class Runner:
    """Runs or recalls the runs of one configuration, one at a time.

    Args:
        config: Settings that all runs share.
        base: The base model.
        results: The results file.
        ask_one: Runs a job.
    """

    def __init__(self, config: QualityConfig, base: BaseModel, results: Results, ask_one: Ask) -> None:
        about = {"model": base.source, "model_digest": base.digest}
        self._config, self._base, self._results, self._ask = config, base, results, ask_one
        self.environment = describe_environment(config.device, config.threads, about)
        text, skills = config.general_text, config.general_skills
        self._general = GeneralSet(general_texts(text), text.tokens, text.window_tokens) if text else None
        self._skills: JudgedSet | None = None
        if skills is not None:
            samples = skills_samples(skills)
            labels = label_set(samples) if skills.task == "classification" else ()
            self._skills = judged_set(skills.task, samples, labels, None, skills.max_tokens)
        self._runs_left = self._steps_left = self._runs_done = self._steps_done = 0
        self._seconds = 0.0

    def expect(self, runs: int, steps: int) -> None:
        """Count runs of so many steps each as still to come, for the time left; a negative number takes them back."""
        self._runs_left += runs
        self._steps_left += runs * (steps + _STEPS_BESIDE)

    def base_job(self, judged: JudgedSet) -> QualityJob:
        """Return the job that judges the base model."""
        return self._job(BASE, 0.0, seed=0, steps=0, train=[], judged=judged)

    def training_job(
        self, method: str, rate: float, seed: int, size: int, parts: Split, judged: JudgedSet
    ) -> QualityJob:
        """Return the job that trains a method on examples drawn by a seed."""
        train = draw(parts.pool, size, seed=seed)
        return self._job(method, rate, seed=seed, steps=self._config.num_steps(size), train=train, judged=judged)

    def search_job(self, method: str, rate: float, size: int, parts: Split, validation: JudgedSet) -> QualityJob:
        """Return the job that tries a learning rate with the first seed; it is given no evaluation sample."""
        job = self.training_job(method, rate, self._config.seeds[0], size, parts, validation)
        return replace(job, judge_at=[job.steps], general=None, skills=None)

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

    def run(self, purpose: Purpose, data: str, size: int, job: QualityJob) -> RunRecord:
        """Return a run's record: from the results file, or from a process."""
        key = self._key(job)
        record = self._results.get(key)
        self.expect(-1, job.steps)
        recalled = record is not None
        if record is None:
            _LOG.info("%s: running", run_name(purpose, data, size, job.method, job.learning_rate, job.seed))
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
                environment=self.environment,
            )
            self._results.add(record)
        self._seconds += record.wall_seconds
        self._runs_done, self._steps_done = self._runs_done + 1, self._steps_done + job.steps + _STEPS_BESIDE
        how = "recalled" if recalled else f"{record.wall_seconds:.0f} s"
        _LOG.info("%s: %s (%s); %s", record, _in_words(record), how, self._time_left())
        return record

    def _key(self, job: QualityJob) -> str:
        decides = {**asdict(job), "model": self._base.digest}
        if job.probe is None:
            del decides["probe"]  # a key says what it said before there were probes
        where = {name: value for name, value in self.environment.items() if name not in _PASSING}
        return sha256_bytes(canonical_json([decides, where]).encode())

    def _time_left(self) -> str:
        left = f"runs left: {self._runs_left}"
        if self._steps_done <= _STEPS_BESIDE:  # the base model alone says nothing of what a step takes
            return left
        return f"{left}, about {self._steps_left * self._seconds / self._steps_done / 60:.0f} min"


def judged_set(
    task: Task, samples: Sequence[Sample], labels: Sequence[str], system_prompt: str | None, max_tokens: int
) -> JudgedSet:
    """Return samples that a model is judged on, as a job holds them."""
    return JudgedSet(task, [asdict(sample) for sample in samples], list(labels), system_prompt, max_tokens)


def _in_words(record: RunRecord) -> str:
    found = record.found
    return f"failed: {record.error}" if found is None else f"{found.end.quality:.3f}"
