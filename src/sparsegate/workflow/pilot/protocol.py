"""The protocol: the base model, a rate for each arm, then the sizes, rising, with all seeds; who can't win stops.

Rates are chosen and arms are stopped by validation samples alone. An arm gets the lowest rate that is not shown to be
worse than its best one: a few steps ask for higher rates than many do, and the higher the rate, the more is forgotten.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from sparsegate.contracts import Sample
from sparsegate.data import PromptRow
from sparsegate.errors import SparsegateError
from sparsegate.reports.pilot_arm import Stop
from sparsegate.workflow.bench.quality.job import JudgedSet, Probe
from sparsegate.workflow.bench.quality.rates import search_rates
from sparsegate.workflow.bench.quality.records import RunRecord
from sparsegate.workflow.bench.quality.runner import Runner, judged_set
from sparsegate.workflow.bench.quality.samples import Split
from sparsegate.workflow.pilot.config import PilotConfig
from sparsegate.workflow.pilot.stopping import Standing, find_stops, is_shown_worse

_LOG = logging.getLogger(__name__)


@dataclass
class ArmRuns:
    """The runs of one arm.

    Args:
        name: The arm.
        searches: The runs that tried a rate, in order.
        rate: The chosen rate; None if none worked.
        finals: By size, rising: the runs of all seeds, in their order.
        stop: Why it was stopped.
        error: Why it failed; empty if it did not.
    """

    name: str
    searches: list[RunRecord] = field(default_factory=list)
    rate: float | None = None
    finals: dict[int, list[RunRecord]] = field(default_factory=dict)
    stop: Stop | None = None
    error: str = ""

    @property
    def runs_on(self) -> bool:
        return self.stop is None and not self.error


@dataclass(frozen=True)
class PilotRuns:
    """All runs: the base model's, and those of each arm in the order of the configuration."""

    base: RunRecord
    arms: tuple[ArmRuns, ...]

    def records(self) -> list[RunRecord]:
        """Return every run, in no order that means anything."""
        finals = [record for arm in self.arms for same in arm.finals.values() for record in same]
        return [self.base, *(record for arm in self.arms for record in arm.searches), *finals]


class Protocol:
    """Runs a pilot's arms.

    Args:
        config: The pilot.
        runner: Runs or recalls single runs.
        parts: The samples.
        red_team: Harmful requests.
        benign: Harmless requests.
    """

    def __init__(
        self,
        config: PilotConfig,
        runner: Runner,
        parts: Split,
        *,
        red_team: Sequence[PromptRow],
        benign: Sequence[PromptRow],
    ) -> None:
        self._config, self._runner, self._parts, self._quality = config, runner, parts, config.quality()
        self._red_team = [prompt.prompt for prompt in red_team]
        self._benign = [prompt.prompt for prompt in benign]
        self._evaluation, self._validation = self._judged(parts.evaluation), self._judged(parts.validation)
        self._search_size = config.search_size or config.sizes[0]
        runner.expect(1, 0)
        for arm in config.arms:
            if self._is_searched(arm):
                runner.expect(len(self._quality.rates(arm)), self._quality.num_steps(self._search_size))
            self._expect_finals(config.sizes)

    def run(self) -> PilotRuns:
        """Run what is not there yet.

        Raises:
            SparsegateError: If the base model can't be judged: nothing could be compared with it.
        """
        base = self._run_base()
        if base.error:
            raise SparsegateError(f"the base model could not be judged: {base.error}")
        arms = tuple(ArmRuns(name) for name in self._config.arms)
        for arm in arms:
            self._choose_rate(arm)
        tried = [arm for arm in arms if arm.searches and arm.runs_on]
        searched = {arm.name: _standing(self._chosen(arm), self._validation) for arm in tried}
        self._stop(arms, searched, self._search_size, left=self._config.sizes)
        for number, size in enumerate(self._config.sizes):
            self._run_size(arms, size, left=self._config.sizes[number + 1 :])
        return PilotRuns(base, arms)

    def _run_base(self) -> RunRecord:
        job = self._runner.base_job(self._evaluation)
        probe = self._probe(stops=False, safety=True, keep=False)
        return self._runner.run("base", self._config.name, 0, replace(job, probe=probe))

    def _choose_rate(self, arm: ArmRuns) -> None:
        """Take the lowest rate that is not shown to be worse than the best, on the validation samples, first seed."""
        rates = self._quality.rates(arm.name)
        if not self._is_searched(arm.name):
            arm.rate = rates[0]
            return

        def try_rate(rate: float) -> RunRecord:
            job = self._runner.search_job(arm.name, rate, self._search_size, self._parts, self._validation)
            job = replace(job, probe=Probe(None, [], [], self._config.safety.max_new_tokens, keep=False))
            return self._runner.run("search", self._config.name, self._search_size, job)

        steps = self._quality.num_steps(self._search_size)
        arm.rate, arm.searches = search_rates(
            rates, try_rate, task=self._validation.task, expect=lambda runs: self._runner.expect(runs, steps)
        )
        if arm.rate is None:
            self._fail(arm, f"no learning rate worked; the last said: {arm.searches[-1].error}", self._config.sizes)
            return
        worked = [record for record in arm.searches if record.found is not None]
        standings = {record.learning_rate: _standing(record, self._validation) for record in worked}
        best = standings[arm.rate]
        arm.rate = min(rate for rate, standing in standings.items() if not is_shown_worse(standing, best))

    def _run_size(self, arms: Sequence[ArmRuns], size: int, *, left: Sequence[int]) -> None:
        """Run all seeds of the arms that run on; in turn, so that a drift of the machine is shared by all."""
        for seed in self._config.seeds:
            for arm in arms:
                if arm.runs_on and arm.rate is not None:
                    record = self._final(arm.name, arm.rate, seed, size, is_last=not left)
                    arm.finals.setdefault(size, []).append(record)
        for arm in arms:
            failed = next((record.error for record in arm.finals.get(size, []) if record.error), "")
            if failed:
                self._fail(arm, failed, left)
        if left:  # the last size is judged by what it says of the targets
            first = {arm.name: _standing(arm.finals[size][0], self._validation) for arm in arms if arm.runs_on}
            self._stop(arms, first, size, left=left)

    def _final(self, method: str, rate: float, seed: int, size: int, *, is_last: bool) -> RunRecord:
        job = self._runner.training_job(method, rate, seed, size, self._parts, self._evaluation)
        if seed == self._config.seeds[0]:
            job = replace(job, probe=self._probe(stops=not is_last, safety=is_last, keep=is_last))
        return self._runner.run("final", self._config.name, size, job)

    def _probe(self, *, stops: bool, safety: bool, keep: bool) -> Probe:
        validation = self._validation if stops else None
        red_team, benign = (self._red_team, self._benign) if safety else ([], [])
        return Probe(validation, red_team, benign, self._config.safety.max_new_tokens, keep)

    def _stop(self, arms: Sequence[ArmRuns], standings: dict[str, Standing], size: int, *, left: Sequence[int]) -> None:
        running = {arm.name: arm for arm in arms if arm.runs_on}
        found = {name: standing for name, standing in standings.items() if name in running}
        for name, stop in find_stops(found, size=size, spare=self._config.reference).items():
            running[name].stop = stop
            self._expect_finals(left, sign=-1)
            _LOG.info(
                "%s stops: %.3f on validation samples after %d examples, %s %.3f at no more cost",
                name,
                stop.accuracy,
                size,
                stop.by,
                stop.by_accuracy,
            )

    def _fail(self, arm: ArmRuns, error: str, left: Sequence[int]) -> None:
        arm.error = error
        self._expect_finals(left, sign=-1)

    def _expect_finals(self, sizes: Sequence[int], *, sign: int = 1) -> None:
        for size in sizes:
            self._runner.expect(sign * len(self._config.seeds), self._quality.num_steps(size))

    def _is_searched(self, arm: str) -> bool:
        return len(self._quality.rates(arm)) > 1

    def _chosen(self, arm: ArmRuns) -> RunRecord:
        return next(record for record in arm.searches if record.learning_rate == arm.rate)

    def _judged(self, samples: Sequence[Sample]) -> JudgedSet:
        data = self._config.data
        return judged_set(data.task, samples, self._parts.labels, data.system_prompt, data.max_tokens)


def _standing(record: RunRecord, validation: JudgedSet) -> Standing:
    """Return how a run did on the validation samples: what a search judges, and what a final is asked beside."""
    found = record.found
    assert found is not None, "an arm whose run failed does not run on"
    assert found.probed is not None, "searches and first seeds are probed"
    answers = found.probed.judged if record.purpose == "search" else found.probed.validation
    assert answers is not None, "finals are asked the validation samples where a size is left"
    expected = [validation.labels.index(str(sample["response"])) for sample in validation.samples]
    right = [label == wanted for label, wanted in zip(answers.labels, expected, strict=True)]
    return Standing(right, found.end.seconds, found.peak_memory_bytes)
