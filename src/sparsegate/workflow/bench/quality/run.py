"""The protocol: the base model, then for each data set and size the learning rates, then all seeds at the best."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sparsegate.contracts import Task
from sparsegate.models import load_tokenizer, resolve
from sparsegate.workflow.bench.quality.config import QualityConfig, QualityData
from sparsegate.workflow.bench.quality.job import JudgedSet
from sparsegate.workflow.bench.quality.rates import search_rates
from sparsegate.workflow.bench.quality.records import Results, RunRecord
from sparsegate.workflow.bench.quality.runner import Ask, Runner, ask_process, judged_set
from sparsegate.workflow.bench.quality.samples import Split, check_lengths, split
from sparsegate.workflow.bench.run import check_choices
from sparsegate.workflow.inputs import check_writable
from sparsegate.workflow.lock import model_lock


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
    tokenizer = load_tokenizer(base.folder)
    for name, data in config.data.items():
        check_lengths(name, data, splits[name], seeds=config.seeds, tokenizer=tokenizer)
    output.parent.mkdir(parents=True, exist_ok=True)
    with model_lock(output.parent, output.name):
        bench = _Benchmark(config, Runner(config, base, Results(output), ask_one))
        return [setting for name, data in config.data.items() for setting in bench.run_data(name, data, splits[name])]


class _Benchmark:
    """Runs the protocol of one configuration."""

    def __init__(self, config: QualityConfig, runner: Runner) -> None:
        self._config, self._runner = config, runner
        for data in config.data.values():
            runner.expect(1, 0)
            for size in data.train_sizes:
                runner.expect(self._runs_of_a_size(), config.num_steps(size))

    def _runs_of_a_size(self) -> int:
        searches = [len(self._config.rates(method)) for method in self._config.methods]
        return sum(count for count in searches if count > 1) + len(searches) * len(self._config.seeds)

    def run_data(self, name: str, data: QualityData, parts: Split) -> list[Setting]:
        evaluation = judged_set(data.task, parts.evaluation, parts.labels, data.system_prompt, data.max_tokens)
        validation = judged_set(data.task, parts.validation, parts.labels, data.system_prompt, data.max_tokens)
        base = self._runner.run("base", name, 0, self._runner.base_job(evaluation))
        settings = []
        for size in data.train_sizes:
            searches: list[RunRecord] = []
            chosen: dict[str, float] = {}
            for method in self._config.methods:
                rate, tried = self._choose_rate(name, size, method, parts, validation)
                searches += tried
                if rate is None:
                    self._runner.expect(-len(self._config.seeds), self._config.num_steps(size))
                else:
                    chosen[method] = rate
            jobs = [  # methods in turn, so that a drift of the machine is shared by all
                self._runner.training_job(method, rate, seed, size, parts, evaluation)
                for seed in self._config.seeds
                for method, rate in chosen.items()
            ]
            finals = [self._runner.run("final", name, size, job) for job in jobs]
            settings.append(Setting(name, size, data.task, base, tuple(searches), tuple(finals)))
        return settings

    def _choose_rate(
        self, name: str, size: int, method: str, parts: Split, validation: JudgedSet
    ) -> tuple[float | None, list[RunRecord]]:
        """Return the rate that does best on the validation samples with the first seed; None if all fail."""
        rates = self._config.rates(method)
        if len(rates) == 1:
            return rates[0], []

        def try_rate(rate: float) -> RunRecord:
            job = self._runner.search_job(method, rate, size, parts, validation)
            return self._runner.run("search", name, size, job)

        steps = self._config.num_steps(size)
        return search_rates(rates, try_rate, task=validation.task, expect=lambda runs: self._runner.expect(runs, steps))
