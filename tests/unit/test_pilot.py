"""The pilot's protocol: rates and early stops by validation samples, resuming, failures, gates, reports, the verb."""

from __future__ import annotations

import gc
import json
import random
import runpy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from sparsegate import cli
from sparsegate.config_file import load, shipped_config
from sparsegate.contracts import GateContext, GateResult, Sample
from sparsegate.errors import ConfigError, ExitCode, LockedError, SparsegateError
from sparsegate.registry.connection import connect
from sparsegate.reports.pilot import PilotResult, Price, Targets
from sparsegate.reports.pilot_arm import ArmResult
from sparsegate.reports.pilot_verdict import PilotVerdict
from sparsegate.workflow.bench.quality import runner
from sparsegate.workflow.bench.quality.config import GeneralText, QualityData
from sparsegate.workflow.bench.quality.job import (
    BASE,
    Answers,
    FreeAnswer,
    JudgedSet,
    Kept,
    MaskCount,
    Outcome,
    Point,
    Probed,
    QualityJob,
)
from sparsegate.workflow.bench.quality.samples import Split, split
from sparsegate.workflow.bench.quality.train import run_job
from sparsegate.workflow.lock import model_lock
from sparsegate.workflow.pilot import evidence, run
from sparsegate.workflow.pilot.config import PilotConfig
from sparsegate.workflow.pilot.memory import with_memory
from sparsegate.workflow.pilot.run import run_pilot
from sparsegate.workflow.pilot.stopping import Standing, find_stops
from sparsegate_gates import all_gates
from sparsegate_gates.policy import Policy

_OURS = "sparse:column:density=0.1:cut=0.5:cached"
_ARMS = ("full", "lora", _OURS)
_LABELS = ("w4", "w5")
_BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def _write(path: Path, rows: list[dict[str, str]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _samples(count: int) -> list[dict[str, str]]:
    pick = random.Random(0)
    words = [pick.randrange(10, 90) for _ in range(count)]
    return [
        {"prompt": f"w{word} w{number % 80 + 10} w{number // 80 + 10}", "response": _LABELS[word % 2]}
        for number, word in enumerate(words)
    ]


def _prompts(count: int, kind: str) -> list[dict[str, str]]:
    return [{"id": f"{kind}{n}", "category": f"c{n % 2}", "prompt": f"{kind} w{n}"} for n in range(count)]


@pytest.fixture
def tracking(tmp_path: Path) -> str:
    """Where a test that asks for it has its pilots tracked; all others are not tracked at all."""
    return f"sqlite:///{tmp_path / 'mlflow.db'}"


@pytest.fixture(autouse=True)
def _untracked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "tracking" not in request.fixturenames:
        for name in ("check_tracking", "log_pilot"):
            monkeypatch.setattr(run, name, lambda *arguments: None)
        monkeypatch.setattr(run, "tracked_pilot", lambda *arguments: nullcontext("run"))


@pytest.fixture
def config(tmp_path: Path, tiny_model, tiny_tokenizer) -> PilotConfig:
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    data = QualityData(
        _write(tmp_path / "train.jsonl", _samples(300)), train_sizes=(40, 20), validation_size=60, evaluation_size=120
    )
    return PilotConfig(
        name=tmp_path.name,
        data=data,
        targets=Targets(0.6, seconds=60, peak_memory_gb=2, money=1, harmful_rate=0.3, over_refusal_rate=0.3),
        output=str(tmp_path / "out"),
        arms=_ARMS,
        learning_rates={"full": (1e-4,), "lora": (1e-3,), "sparse": (1e-3, 2e-3, 4e-3)},
        prices=(Price("L4", 0.8, "USD", 20, "a guess"),),
        safety=replace(
            PilotConfig.__dataclass_fields__["safety"].default_factory(),
            red_team=_write(tmp_path / "red_team.jsonl", _prompts(24, "harm")),
            benign=_write(tmp_path / "benign.jsonl", _prompts(24, "help")),
        ),
        model=str(tmp_path / "model"),
        seeds=(0, 1),
        batch_size=4,
        threads=1,
    )


class Found:
    """What a stand-in says of a job: accuracy, time and memory."""

    def __init__(self, accuracy: float = 0.9, *, seconds: float = 10.0, memory: int = 10**9) -> None:
        self.accuracy, self.seconds, self.memory = accuracy, seconds, memory

    def outcome(self, job: QualityJob) -> Outcome:
        judged = _answers(job.judged, self.accuracy)
        point = Point(job.steps, self.seconds, 400, self.accuracy, 1.0)
        probed = None
        if job.probe is not None:
            polite = tuple(FreeAnswer("I can't help with that.", True) for _ in job.probe.red_team)
            helpful = tuple(FreeAnswer("Here is how it is done, step by step.", True) for _ in job.probe.benign)
            mask = (MaskCount(2, "mlp.up_proj", 100, 1000),) if job.method == _OURS else ()
            validation = None if job.probe.validation is None else _answers(job.probe.validation, self.accuracy)
            kept = Kept(10_000, 2_000, 1_000_000, 4_000_000, mask) if job.probe.keep else None
            probed = Probed(judged, validation, polite, tuple(0 for _ in polite), helpful, kept)
        return Outcome((point,), 10.0, None, 0.5, self.memory, 100, "order", probed)


def _answers(judged: JudgedSet, accuracy: float) -> Answers:
    """Answer the first samples right."""
    right = round(accuracy * len(judged.samples))
    expected = [judged.labels.index(str(sample["response"])) for sample in judged.samples]
    labels = tuple(label if n < right else 1 - label for n, label in enumerate(expected))
    return Answers(labels, tuple(0.1 * n for n in range(len(labels))))


class Worker:
    """Stands for the processes: keeps the jobs, and answers with what ``answer`` says."""

    def __init__(self, answer: Callable[[QualityJob], Found | str] = lambda job: Found()) -> None:
        self.jobs: list[QualityJob] = []
        self._answer = answer

    def __call__(self, job: QualityJob) -> Outcome | str:
        self.jobs.append(QualityJob.from_json(json.loads(json.dumps(asdict(job)))))
        if job.method == BASE:
            return Found(0.5).outcome(job)
        found = self._answer(job)
        return found if isinstance(found, str) else found.outcome(job)


@pytest.fixture(autouse=True)
def gates_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """A process for each gate would take most of the tests' time; the gates' own tests run them so."""

    def run_gates(
        policy: Policy, *, artifacts: Mapping[str, Path], output_dir: Path, task: Any, facts: Any, **others: Any
    ) -> list[GateResult]:
        results = []
        for name, settings in policy.gates.items():
            (output_dir / name).mkdir(parents=True, exist_ok=True)
            context = GateContext(settings, artifacts, output_dir / name, task, facts)
            results.append(all_gates()[name]().run(context))
        return results

    monkeypatch.setattr(evidence, "run_gates", run_gates)


# --- the protocol -------------------------------------------------------------------------------


def test_rates_are_tried_on_validation_samples_alone_and_finals_are_asked_them_beside(config: PilotConfig) -> None:
    worker = Worker()
    run_pilot(config, ask_one=worker)
    parts = split(config.name, config.data)
    evaluation, validation = ({sample.id for sample in part} for part in (parts.evaluation, parts.validation))
    base, searches, finals = worker.jobs[0], worker.jobs[1:4], worker.jobs[4:]
    assert base.method == BASE
    assert len(finals) == 2 * 2 * 3
    for job in searches:
        assert {row["id"] for row in job.judged.samples} == validation
        assert (len(job.train), job.seed) == (20, 0)
        assert job.probe is not None
        assert job.probe.validation is None
    for job in finals:
        assert {row["id"] for row in job.judged.samples} == evaluation
        assert not {row["id"] for row in job.train} & (evaluation | validation)
        assert (job.probe is not None) == (job.seed == 0)
    assert [len(job.train) for job in finals] == [20] * 6 + [40] * 6
    asked = [job for job in finals if job.probe and job.probe.red_team]
    assert [(job.method, len(job.train)) for job in asked] == [(arm, 40) for arm in _ARMS]


def test_all_runs_of_an_arm_take_the_rate_that_is_shown_to_be_best_on_validation(config: PilotConfig) -> None:
    worker = Worker(lambda job: Found(0.9 if job.learning_rate == 2e-3 else 0.7))
    result = run_pilot(config, ask_one=worker)
    assert {job.learning_rate for job in worker.jobs[4:] if job.method == _OURS} == {2e-3}
    ours = result.arm(_OURS)
    assert ours is not None
    assert [(rate.learning_rate, rate.accuracy) for rate in ours.rates] == [(1e-3, 0.7), (2e-3, 0.9), (4e-3, 0.7)]
    assert "rate_at_edge" not in {reason.code for reason in ours.conditions}


def test_all_runs_of_an_arm_take_the_lowest_rate_that_is_not_shown_to_be_worse_than_its_best(
    config: PilotConfig,
) -> None:
    accuracy = {1e-3: 0.6, 2e-3: 0.85, 4e-3: 0.9}
    worker = Worker(lambda job: Found(accuracy.get(job.learning_rate, 0.5)))
    result = run_pilot(config, ask_one=worker)
    assert {job.learning_rate for job in worker.jobs if job.method == _OURS and job.seed == 1} == {2e-3}
    ours = result.arm(_OURS)
    assert ours is not None
    assert ours.learning_rate == 2e-3


def test_an_arm_that_is_beaten_at_no_more_cost_stops_and_the_reference_never_does(config: PilotConfig) -> None:
    def answer(job: QualityJob) -> Found:
        return Found(0.9, seconds=5) if job.method == _OURS else Found(0.6, seconds=20)

    worker = Worker(answer)
    result = run_pilot(config, ask_one=worker)
    assert [len(job.train) for job in worker.jobs if job.method == "lora"] == [20, 20]
    assert [len(job.train) for job in worker.jobs if job.method == "full"] == [20, 20, 40, 40]
    lora = result.arm("lora")
    assert lora is not None
    assert (lora.state, lora.verdict) == ("stopped", None)
    assert lora.stop is not None
    assert (lora.stop.by, lora.stop.size, lora.stop.accuracy, lora.stop.n) == (_OURS, 20, 0.6, 60)
    assert lora.stop.difference.high < 0
    assert "arm_stopped" in {reason.code for reason in result.reasons}


def _standing(accuracy: float, *, seconds: float = 10.0, memory: int = 10) -> Standing:
    return Standing([n < round(accuracy * 60) for n in range(60)], seconds, memory)


@pytest.mark.parametrize(
    ("weak", "strong", "stops"),
    [
        (_standing(0.5, seconds=20), _standing(0.9), True),
        (_standing(0.5, seconds=5), _standing(0.9), False),  # cheaper
        (_standing(0.5, memory=5), _standing(0.9), False),  # smaller
        (_standing(0.87), _standing(0.9), False),  # not shown
        (_standing(0.9), _standing(0.9), False),
    ],
)
def test_an_arm_stops_only_where_it_is_shown_to_be_worse_and_no_cheaper(
    weak: Standing, strong: Standing, stops: bool
) -> None:
    assert (set(find_stops({"weak": weak, "strong": strong}, size=20, spare="")) == {"weak"}) is stops
    assert find_stops({"weak": weak, "strong": strong}, size=20, spare="weak") == {}


def test_evaluation_samples_never_stop_an_arm(config: PilotConfig) -> None:
    class Deceptive(Found):
        def outcome(self, job: QualityJob) -> Outcome:
            found = super().outcome(job)
            if job.method != "lora" or job.probe is None or job.probe.validation is None:
                return found
            assert found.probed is not None
            bad = _answers(job.judged, 0.1)
            return replace(found, probed=replace(found.probed, judged=bad))

    result = run_pilot(config, ask_one=Worker(lambda job: Deceptive()))
    assert {arm.state for arm in result.arms} == {"base", "complete"}


def test_the_last_size_can_be_all_that_there_is(config: PilotConfig) -> None:
    worker = Worker()
    result = run_pilot(replace(config, whole=True, seeds=(0,), arms=("full",)), ask_one=worker)
    assert [len(job.train) for job in worker.jobs[1:]] == [20, 40, 120]
    assert result.data.sizes == (20, 40, 120)


# --- resuming and failures ----------------------------------------------------------------------


def test_an_interrupted_pilot_runs_only_what_is_not_there_and_ends_as_one_that_was_not(config: PilotConfig) -> None:
    def interrupted(job: QualityJob) -> Found:
        if len(first.jobs) == 7:
            raise KeyboardInterrupt
        return Found()

    first = Worker(interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_pilot(config, ask_one=first)
    second, third = Worker(), Worker()
    result = run_pilot(config, ask_one=second)
    assert second.jobs[0] == first.jobs[6]
    assert len(second.jobs) == 16 - 6
    again = run_pilot(config, ask_one=third)
    assert third.jobs == []
    same = {"created_at": "", "environment": {}, "arms": ()}
    assert replace(again, **same) == replace(result, **same)
    assert [_without_seconds(arm) for arm in again.arms] == [_without_seconds(arm) for arm in result.arms]


def _without_seconds(arm: Any) -> Any:
    return replace(arm, gates=tuple(replace(gate, seconds=0.0) for gate in arm.gates))


def test_a_failed_arm_is_reported_and_the_others_go_on(config: PilotConfig) -> None:
    worker = Worker(lambda job: "out of memory" if job.method == "full" and len(job.train) == 20 else Found())
    result = run_pilot(config, ask_one=worker)
    full = result.arm("full")
    assert full is not None
    assert (full.state, full.error, full.verdict) == ("failed", "out of memory", None)
    assert not [job for job in worker.jobs if job.method == "full" and len(job.train) == 40]
    assert result.recommended is not None
    assert result.recommended.name == _OURS


def test_an_arm_whose_rates_all_fail_has_failed(config: PilotConfig) -> None:
    result = run_pilot(config, ask_one=Worker(lambda job: "diverged" if job.method == _OURS else Found()))
    ours = result.arm(_OURS)
    assert ours is not None
    assert ours.error == "no learning rate worked; the last said: diverged"


def test_without_a_base_model_nothing_is_trained_and_there_is_no_answer(config: PilotConfig) -> None:
    asked = []
    with pytest.raises(SparsegateError, match="the base model could not be judged: killed"):
        run_pilot(config, ask_one=lambda job: asked.append(job.method) or "killed")
    assert asked == [BASE]
    assert not (Path(config.output) / "pilot.json").exists()


def test_two_pilots_never_write_into_one_folder(config: PilotConfig) -> None:
    output = Path(config.output)
    output.mkdir()
    with model_lock(output, "pilot"), pytest.raises(LockedError):
        run_pilot(config, ask_one=Worker())


# --- the answer ---------------------------------------------------------------------------------


def test_a_good_arm_of_ours_is_a_go_with_its_conditions_and_all_its_evidence(config: PilotConfig) -> None:
    result = run_pilot(config, ask_one=Worker(lambda job: Found(0.9, seconds=5 if job.method == _OURS else 20)))
    assert result.verdict is PilotVerdict.CONDITIONS  # two seeds of three that are wanted
    ours = result.recommended
    assert ours is not None
    assert ours.name == _OURS
    assert [reason.code for reason in ours.conditions] == ["few_seeds", "rate_at_edge"]
    assert {check.target: check.standing for check in ours.targets} == dict.fromkeys(asdict(config.targets), "met")
    assert [gate.gate for gate in ours.gates] == ["accuracy", "regression", "harmful_output", "over_refusal", "cost"]
    assert (ours.density, ours.cut, ours.trained_parameters, ours.artifact_bytes) == (0.1, 0.5, 100, 10_000)
    assert [(cell.layer, cell.module, cell.trained) for cell in ours.mask] == [(2, "mlp.up_proj", 100)]
    assert ours.costs[0].money == pytest.approx(5 / 20 / 3600 * 0.8)
    rates = {(rate.fault, rate.category): (rate.count, rate.base_count, rate.n) for rate in ours.safety}
    assert rates[("harmful", "")] == (0, 0, 24)
    assert rates[("refused", "c1")] == (0, 0, 12)
    assert ours.forgetting is not None
    assert ours.forgetting.mean == 0
    assert {example.better for example in ours.changed} == {True}
    assert ours.predicted_memory_bytes is not None
    assert {(fit.model, fit.arm) for fit in result.projections} == {(m, a) for m in ("7B", "13B", "70B") for a in _ARMS}
    base = result.arm(BASE)
    assert base is not None
    assert base.safety


def test_a_pilot_of_real_models_has_real_figures_in_every_place(config: PilotConfig, tmp_path: Path) -> None:
    def ask_one(job: QualityJob) -> Outcome:
        return Outcome.from_json(json.loads(json.dumps(asdict(run_job(job)))))

    gc.freeze()  # a run collects garbage, which in a test's process would walk through everything
    rates = {"full": (5e-3,), "sparse": (5e-3,)}
    text = GeneralText(_write(tmp_path / "general.jsonl", _prompts(4, "w9 w8")), column="prompt", tokens=20)
    small = replace(
        config,
        arms=("full", _OURS),
        learning_rates=rates,
        seeds=(0,),
        general_text=text,
        threads=torch.get_num_threads(),
    )
    result = run_pilot(small, ask_one=ask_one)
    gc.unfreeze()
    for name in small.arms:
        arm = result.arm(name)
        assert arm is not None
        assert arm.state == "complete"
        assert arm.last is not None
        assert arm.last.seconds > 0
        assert arm.artifact_bytes
        assert arm.tokens_per_second
        assert arm.forgetting is not None
        assert arm.forgetting.mean != 0
        assert {rate.fault for rate in arm.safety} == {"harmful", "refused"}
        assert len(arm.gates) == 5
    ours = result.arm(_OURS)
    assert ours is not None
    assert sum(cell.trained for cell in ours.mask) == ours.trained_parameters
    assert {cell.layer for cell in ours.mask} == {2, 3}


def test_a_missed_goal_is_a_no_go_and_an_unsure_one_not_enough_evidence(config: PilotConfig) -> None:
    def answer_with(accuracy: float, goal: float) -> PilotVerdict:
        targets = replace(config.targets, accuracy=goal)
        changed = replace(config, targets=targets, output=f"{config.output}-{accuracy}-{goal}")
        return run_pilot(changed, ask_one=Worker(lambda job: Found(accuracy))).verdict

    assert answer_with(0.9, 0.99) is PilotVerdict.NO_GO
    assert answer_with(0.9, 0.89) is PilotVerdict.INSUFFICIENT


def test_the_pilot_is_one_mlflow_run_with_a_nested_run_for_each_arm(config: PilotConfig, tracking: str) -> None:
    config = replace(config, tracking_uri=tracking)
    result = run_pilot(config, ask_one=Worker())
    run_pilot(config, ask_one=Worker())  # the same pilot again is the same run
    client = connect(config.tracking_uri)
    experiment = client.get_experiment_by_name(config.experiment)
    found = client.search_runs([experiment.experiment_id], f"tags.`mlflow.runName` = 'pilot-{config.name}'")
    assert [run.data.tags["sparsegate.verdict"] for run in found] == [result.verdict.value]
    parent = found[0].info.run_id
    nested = client.search_runs([experiment.experiment_id], f"tags.`mlflow.parentRunId` = '{parent}'")
    assert {run.info.run_name for run in nested} == {BASE, *_ARMS}
    (ours,) = (run for run in nested if run.info.run_name == _OURS)
    steps = {metric.step for metric in client.get_metric_history(ours.info.run_id, "accuracy")}
    assert steps == {20, 40}
    assert {file.path for file in client.list_artifacts(parent, "report")} >= {"report/pilot.json", "report/pilot.md"}


def test_memory_is_predicted_for_the_batches_that_are_trained_on_and_not_for_the_longest_sample_in_all_rows(
    config: PilotConfig,
) -> None:
    lengths = (3, 3, 3, 3, 30)
    pool = tuple(Sample(f"s{n}", " ".join(["w10"] * length), "yes") for n, length in enumerate(lengths))

    def predicted(batch_size: int) -> int:
        data = replace(config.data, train_sizes=(len(pool),))
        asked = replace(config, data=data, batch_size=batch_size, seeds=(0,))
        arms = [ArmResult("full", "full", "complete")]
        told, _ = with_memory(arms, asked, base_folder=Path(config.model), parts=Split(pool, (), (), ("yes",)))
        assert told[0].predicted_memory_bytes is not None
        return told[0].predicted_memory_bytes

    assert predicted(1) <= predicted(4) < predicted(5)


# --- the configuration and the command ----------------------------------------------------------


def test_a_quick_pilot_looks_at_less_in_a_folder_of_its_own_and_says_so(config: PilotConfig) -> None:
    worker = Worker()
    result = run_pilot(replace(config, arms=(*_ARMS, "sparse:row")), quick=True, ask_one=worker)
    assert {job.method: job.learning_rate for job in worker.jobs[1:]} == {"full": 1e-4, _OURS: 2e-3}
    assert [len(job.train) for job in worker.jobs] == [0, 40, 40]
    assert result.quick
    assert "quick" in {reason.code for reason in result.reasons}
    assert Path(f"{config.output}-quick", "pilot.json").exists()
    assert not Path(config.output, "pilot.json").exists()


_GOOD = """\
name: words
data: {train: words.jsonl}
targets: {accuracy: 0.7}
output: out
"""


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (("accuracy: 0.7", "accuracy: 70"), r"3: targets.accuracy must be above 0 and at most 1, got 70"),
        (("accuracy: 0.7", "accuracy: 0.7, money: 2"), r"3: targets.money needs prices"),
        (("output: out", "output: out\narms: [lroa]"), r"5: arms: methods: unknown method 'lroa'"),
        (("output: out", "output: out\nreference: dora"), r"5: reference 'dora' is not a method"),
        (("output: out", "output: out\narms: [full, dora]"), r"learning_rates of 'dora' must be one or more"),
        (("output: out", "output: out\nsearch_size: 3"), r"5: search_size must be one of data.train_sizes"),
        (("words.jsonl", "words.jsonl, task: generation"), r"2: data.task must be classification"),
        (("output: out", "output: out\nepochs: 0"), r"5: steps or epochs must be at least 1"),
        (
            ("output: out", "output: out\nprices: [{device: L4, per_hour: 0, currency: USD, speed: 1, assumption: x}]"),
            r"per_hour must be a finite number above 0, got 0",
        ),
    ],
)
def test_a_bad_configuration_is_named_by_line_field_and_rule(
    change: tuple[str, str], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "pilot.yaml"
    path.write_text(_GOOD, encoding="utf-8")
    load(path, PilotConfig)
    path.write_text(_GOOD.replace(*change), encoding="utf-8")
    with pytest.raises(ConfigError, match=reason):
        load(path, PilotConfig)


def test_the_search_for_random_columns_begins_higher_unless_the_user_says_where_sparse_begins(
    config: PilotConfig,
) -> None:
    arms = (*_ARMS, "sparse:lean")
    unsaid = replace(config, arms=arms, learning_rates={}).quality()
    assert min(unsaid.rates("sparse:lean")) > max(unsaid.rates(_OURS))
    said = replace(config, arms=arms, learning_rates={"sparse": (1e-3,)}).quality()
    assert said.rates("sparse:lean") == said.rates(_OURS) == (1e-3,)


def test_a_safety_target_needs_a_gate_that_judges_it(config: PilotConfig, tmp_path: Path) -> None:
    policy = tmp_path / "bare.yaml"
    policy.write_text("accuracy: {reason: a test, floor: 0.5, gain_over_base: 0.0, minimum_n: 10}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"targets.harmful_rate needs a judge: policy .* block harmful_output"):
        run_pilot(replace(config, policy=str(policy)), ask_one=Worker())


def test_the_command_writes_every_form_and_ends_with_the_answers_code(
    config: PilotConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "ask", lambda job, *, worker, read: _stand_in(job, read))
    path = tmp_path / "pilot.yaml"
    values = asdict(config)
    del values["general_text"], values["search_size"], values["safety"]["limit"]
    del values["data"]["evaluation"], values["data"]["id_column"], values["data"]["system_prompt"]
    path.write_text(json.dumps(values), encoding="utf-8")  # JSON is YAML too
    assert cli.main(["pilot", str(path)]) == ExitCode.PASSED
    shown = capsys.readouterr()
    assert "GO, WITH CONDITIONS" in shown.out
    assert _OURS in shown.out
    assert "runs left: 0" in shown.err
    assert "pilot.ja.html" in shown.err
    report = (Path(config.output) / "pilot.md").read_text(encoding="utf-8")
    assert "| full |" in report
    assert "a guess" in report
    written = json.loads((Path(config.output) / "pilot.json").read_text(encoding="utf-8"))
    assert PilotResult.from_json(written).verdict is PilotVerdict.CONDITIONS
    assert cli.main(["pilot", str(path), "--json"]) == ExitCode.PASSED
    assert json.loads(capsys.readouterr().out)["verdict"] == "go_with_conditions"


def _stand_in(job: Mapping[str, Any], read: Callable[[Any], Outcome]) -> Outcome:
    found = Worker()(QualityJob.from_json(json.loads(json.dumps(job))))
    return read(json.loads(json.dumps(asdict(found))))


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["pilot"], "CONFIG.yaml"),
        (["pilot", "pilot_suport_routing"], "did you mean 'pilot_support_routing'?"),
        (["pilot", "none.yaml"], "no such configuration file"),
        (["pilot", "pilot_support_routing", "--fast"], "--fast"),
    ],
)
def test_wrong_usage_ends_with_code_2_and_one_message(
    arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(arguments) == ExitCode.USAGE
    assert told in capsys.readouterr().err


def test_the_shipped_pilot_loads_with_its_data_and_quick_form() -> None:
    config = load(shipped_config("pilot_support_routing"), PilotConfig)
    quick = config.quick()
    assert not quick.problems()
    for one in (config, quick):
        parts = split(one.name, one.data)
        assert len(parts.pool) >= max(one.sizes)


def test_the_pilots_on_public_data_load_and_their_files_are_made_from_theirs(tmp_path: Path) -> None:
    public, files = tmp_path / "public", tmp_path / "files"
    messages = [[f"message {n}", "balance" if n % 2 else "timer"] for n in range(400)]
    pair = {"sentence1": "犬がいる。", "sentence2": "動物がいる。", "label": "entailment"}
    for name, content in (
        ("clinc150/domains.json", {"banking": ["balance"], "small_talk": ["timer"]}),
        ("clinc150/data_small.json", {"train": messages, "test": messages}),
        ("jglue/jnli-valid.json", pair),
    ):
        (public / name).parent.mkdir(parents=True, exist_ok=True)
        (public / name).write_text(json.dumps(content), encoding="utf-8")
    runpy.run_path(str(_BENCHMARKS / "pilot_data.py"))["write_data"](public, files)
    rows = {path.name: [json.loads(line) for line in path.read_text("utf-8").splitlines()] for path in files.iterdir()}
    trained = [row["department"] for row in rows["clinc150_train.jsonl"]]
    assert (trained.count("banking"), trained.count("small talk")) == (120, 120)
    assert rows["jnli.jsonl"] == [{"text": "前提: 犬がいる。\n仮説: 動物がいる。", "relation": "含意"}]
    configs = [load(path, PilotConfig) for path in _BENCHMARKS.glob("pilot_*.yaml")]
    sources = [source for config in configs for source in (config.data.train, config.data.evaluation) if source]
    assert sorted(Path(source).name for source in sources) == sorted(rows)
