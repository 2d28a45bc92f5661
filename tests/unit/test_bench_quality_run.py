"""One run of the quality benchmark: training and judging do not disturb each other, and figures are what they say."""

from __future__ import annotations

import gc
import json
import math
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import PreTrainedModel

from sparsegate.errors import SparsegateError
from sparsegate.workflow.bench.quality import train
from sparsegate.workflow.bench.quality.job import BASE, GeneralSet, JudgedSet, Outcome, Probe, QualityJob
from sparsegate.workflow.bench.quality.judge import Judge, Judgement, encode_general
from sparsegate.workflow.bench.quality.train import run_job

# as in test_bench_measure.py: peft 0.21 asks transformers 5.24 in the old way
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
_METHODS = (
    "full",
    "full-ours",
    "lora",
    "lora-ours",
    "adalora",
    "sparse:column:density=0.2",
    "sparse:column:cut=0.5:cached",
)


@pytest.fixture(scope="module", autouse=True)
def quick_collection() -> Iterator[None]:
    """A run collects garbage before it measures memory, which in a test's process would walk through everything."""
    gc.freeze()
    yield
    gc.unfreeze()


def _samples(count: int, start: int = 0) -> list[dict[str, object]]:
    return [
        {"id": f"s{n}", "prompt": f"w{n % 60 + 20} w{n % 7 + 10}", "response": f"w{4 + n % 2}", "slices": {}}
        for n in range(start, start + count)
    ]


@pytest.fixture
def job(tmp_path: Path, tiny_model: PreTrainedModel, tiny_tokenizer) -> QualityJob:
    tiny_model.save_pretrained(tmp_path / "model")
    tiny_tokenizer.save_pretrained(tmp_path / "model")
    judged = JudgedSet("classification", _samples(12, 100), ["w4", "w5"], None, 64)
    return QualityJob(
        model=str(tmp_path / "model"),
        device="cpu",
        threads=torch.get_num_threads(),
        method="full-ours",
        learning_rate=5e-3,
        seed=0,
        steps=6,
        batch_size=4,
        warmup_fraction=0.1,
        gradient_clip=1.0,
        refresh={},
        train=_samples(14),
        judged=judged,
        judge_at=[3, 6],
        judge_batch_size=4,
        general=GeneralSet(["w9 w8 w7 w6 w5 w4", "w3 w2"], 100, 4),
        skills=replace(judged, task="generation", labels=[]),
    )


@pytest.fixture
def untrained(job: QualityJob) -> Outcome:
    return run_job(replace(job, method=BASE, train=[], steps=0))


@pytest.mark.parametrize("method", _METHODS)
def test_every_method_learns_in_the_same_order(method: str, job: QualityJob, untrained: Outcome) -> None:
    found, reference = run_job(replace(job, method=method)), run_job(replace(job, steps=6, learning_rate=1e-6))
    assert found.order_sha256 == reference.order_sha256
    assert found.end.tokens == reference.end.tokens
    assert found.end.nll_nats < untrained.end.nll_nats - 0.01  # AdaLoRA is slow
    assert found.trained_parameters > 0
    assert [point.step for point in found.points] == [3, 6]
    assert 0 < found.points[0].seconds < found.points[1].seconds


def test_another_seed_gives_another_order(job: QualityJob) -> None:
    assert run_job(job).order_sha256 != run_job(replace(job, seed=1)).order_sha256


@pytest.mark.parametrize("method", ["lora", "sparse:column:cut=0.5:cached"])
def test_judging_on_the_way_changes_nothing_of_training(method: str, job: QualityJob) -> None:
    often = run_job(replace(job, method=method, judge_at=[2, 4, 6]))
    once = run_job(replace(job, method=method, judge_at=[6]))
    assert often.end.nll_nats == once.end.nll_nats
    assert often.general_perplexity == once.general_perplexity


def test_judging_counts_neither_as_time_nor_as_memory(job: QualityJob, monkeypatch: pytest.MonkeyPatch) -> None:
    seconds, peak = 0.0, 0

    def clock(_: torch.device) -> float:
        nonlocal seconds
        seconds += 1
        return seconds

    def reset() -> None:
        nonlocal peak
        peak = 7

    def judge(*_: object) -> Judgement:
        nonlocal seconds, peak
        seconds, peak = seconds + 1000, 10**12
        return Judgement(0.5, 1.0)

    monkeypatch.setattr(train, "now", clock)
    monkeypatch.setattr(train, "start_phase", reset)
    monkeypatch.setattr(train, "peak_memory_bytes", lambda _: peak)
    monkeypatch.setattr(Judge, "judge", judge)
    found = run_job(replace(job, judge_at=[2, 4, 6], general=None, skills=None))
    assert [point.seconds for point in found.points] == [2, 3, 4]  # the first interval also asks for the set-up's time
    assert found.peak_memory_bytes == 7


def test_the_general_perplexity_is_that_of_each_window_by_itself(
    untrained: Outcome, tiny_model: PreTrainedModel
) -> None:
    losses = []
    for window in ([9, 8, 7, 6], [5, 4], [3, 2]):
        with torch.no_grad():
            logits = tiny_model(input_ids=torch.tensor([window])).logits[0, :-1]
        losses.append(F.cross_entropy(logits, torch.tensor(window[1:]), reduction="none"))
    assert untrained.general_perplexity == pytest.approx(math.exp(float(torch.cat(losses).mean())), rel=1e-5)


def test_general_text_is_scored_up_to_its_limit_of_tokens(tiny_tokenizer) -> None:
    windows = encode_general(tiny_tokenizer, GeneralSet(["w9 w8 w7 w6 w5 w4", "w3 w2"], 4, 4))
    assert [len(window.response_ids) for window in windows] == [3, 1]


def test_the_base_model_is_judged_untrained(untrained: Outcome) -> None:
    assert [point.step for point in untrained.points] == [0]
    assert untrained.skills == pytest.approx(math.exp(untrained.end.nll_nats))
    assert untrained.trained_parameters == 0


def test_a_supports_refresh_follows_the_given_rule(job: QualityJob) -> None:
    method = "sparse:column:density=0.2:refresh=2"
    kept = run_job(replace(job, method=method, refresh={"minimum_age_steps": 100}))
    changed = run_job(replace(job, method=method, refresh={"minimum_age_steps": 0, "below": 1.0, "margin": 1.0}))
    plain = run_job(replace(job, method="sparse:column:density=0.2"))
    assert kept.end.nll_nats == plain.end.nll_nats
    assert changed.end.nll_nats != plain.end.nll_nats


def test_a_loss_that_is_not_finite_ends_the_run(job: QualityJob) -> None:
    with pytest.raises(SparsegateError, match=r"training diverged at step \d with learning rate 1e\+30"):
        run_job(replace(job, method="full", learning_rate=1e30))


@pytest.mark.parametrize("method", [BASE, "lora", "sparse:column:density=0.2:cut=0.5:cached"])
def test_a_probe_says_what_the_trained_model_says_and_what_would_be_kept(method: str, job: QualityJob) -> None:
    validation = replace(job.judged, samples=_samples(9, 200))
    probe = Probe(validation, ["w9 w8", "w7"], ["w3 w4 w5"], max_new_tokens=3, keep=True)
    steps = 0 if method == BASE else 6
    asked = replace(job, method=method, steps=steps, train=job.train[: 14 * bool(steps)], general=None, skills=None)
    plain, found = run_job(asked), run_job(replace(asked, probe=probe))
    probed = found.probed
    assert probed is not None
    assert [point.quality for point in found.points] == [point.quality for point in plain.points]
    right = [label == n % 2 for n, label in enumerate(probed.judged.labels, start=100)]
    assert sum(right) / len(right) == found.end.quality
    assert probed.validation is not None
    assert len(probed.validation.labels) == 9
    assert (len(probed.red_team), len(probed.red_team_labels), len(probed.benign)) == (2, 2, 1)
    if method == BASE:
        assert probed.kept is None
        return
    assert probed.kept is not None
    assert probed.kept.artifact_bytes > 0
    # values, gradients and two moments in fp32, and Adam's counters
    assert 16 <= probed.kept.state_bytes / found.trained_parameters < 17
    ours = method.startswith("sparse")
    assert {cell.layer for cell in probed.kept.mask} == ({2, 3} if ours else set())
    assert not ours or sum(cell.trained for cell in probed.kept.mask) == found.trained_parameters


def test_jobs_and_outcomes_with_a_probe_are_the_same_after_json(job: QualityJob) -> None:
    probe = Probe(job.judged, ["w9"], ["w3"], max_new_tokens=2, keep=True)
    asked = replace(job, method="sparse:column", probe=probe)
    assert QualityJob.from_json(json.loads(json.dumps(asdict(asked)))) == asked
    found = run_job(asked)
    assert Outcome.from_json(json.loads(json.dumps(asdict(found)))) == found
