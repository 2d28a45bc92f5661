"""Why a run starts: each reason is found, told and recorded, and none of them is taken for another."""

import json
import random
from dataclasses import replace

import pytest

from sparsegate.config import DataConfig, DriftConfig, RegistryConfig, RunConfig, check_rules
from sparsegate.contracts import Sample
from sparsegate.errors import ConfigError, DataError
from sparsegate.workflow.inputs import Inputs
from sparsegate.workflow.triggers import find_triggers


def late_parcels(seed):
    draw = random.Random(seed)
    return [f"my parcel {draw.randrange(10**6)} is late" for _ in range(120)]


TRAIN = tuple(Sample(str(number), text, "delivery") for number, text in enumerate(late_parcels(seed=0)))


def make_inputs(train=TRAIN):
    return Inputs(train, frozenset(), (), (Sample("e", "hello", "other"),), ("delivery", "other"), (), (), ())


@pytest.fixture
def config(registry):
    return RunConfig(data=DataConfig(), registry=RegistryConfig("desk", registry.uri))


def log_of(config, tmp_path, texts, **settings):
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(f"{json.dumps({'prompt': text})}\n" for text in texts), encoding="utf-8")
    return replace(config, trigger="drift", drift=DriftConfig(log=str(path), **settings))


def trained_on(registry, inputs, monkeypatch):
    """Register a champion that was trained on these inputs."""
    made = registry.make_run
    monkeypatch.setattr(
        registry,
        "make_run",
        lambda *given: (
            lambda run: replace(run, manifest=replace(run.manifest, data_sha256=inputs.digests(), triggers=("t",)))
        )(made(*given)),
    )
    registry.add("k1")
    assert registry.move("promote", "--version", "1")[0] == 0


def test_without_a_champion_all_data_is_new(config):
    start = find_triggers(replace(config, slot="2026-11-25"), make_inputs())
    assert start.triggers == ("new data: there is no champion yet", "schedule: slot 2026-11-25")
    assert start.missing is None


def test_data_is_new_where_its_digest_differs_from_the_champions(registry, config, monkeypatch):
    trained_on(registry, make_inputs(), monkeypatch)
    waiting = replace(config, trigger="new_data")
    same = find_triggers(waiting, make_inputs())
    assert same.triggers == ("manual: neither new data nor a slot",)
    assert same.missing == "no new data: train, validation and evaluation are those of the champion"
    grown = find_triggers(waiting, make_inputs((*TRAIN, Sample("n", "a new row", "delivery"))))
    assert grown == (("new data: train changed since version 1",), None)


def test_a_champion_whose_evidence_is_gone_does_not_keep_a_run_from_starting(registry, config, monkeypatch):
    trained_on(registry, make_inputs(), monkeypatch)
    (registry.package(1) / "evidence.dsse.json").unlink()
    start = find_triggers(replace(config, trigger="new_data"), make_inputs())
    assert start == (("new data: what version 1 was trained on can't be read",), None)


def test_history_shows_why_the_run_of_a_version_was_started(registry, monkeypatch):
    trained_on(registry, make_inputs(), monkeypatch)
    code, out, _ = registry.run("history", "desk", "--json")
    assert (code, json.loads(out)["rows"][0]["triggers"]) == (0, ["t"])
    assert "Started by t." in (registry.package(1) / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_drift_starts_a_run_and_says_how_it_was_measured(config, tmp_path):
    asked = [f"the router {number} has no signal" for number in range(120)]
    start = find_triggers(log_of(config, tmp_path, asked), make_inputs())
    assert start.missing is None
    assert start.triggers[-1].startswith(
        "drift: a classifier tells 120 logged from 120 training prompts with AUC 1.000"
    )


def test_inputs_like_the_training_data_are_no_drift(config, tmp_path):
    start = find_triggers(log_of(config, tmp_path, late_parcels(seed=1)), make_inputs())
    assert start.missing.startswith("no drift: a classifier tells 120 logged")
    assert not any(trigger.startswith("drift") for trigger in start.triggers)


def test_only_the_end_of_the_log_counts_and_a_short_log_shows_nothing(config, tmp_path):
    asked = [f"the router {number} has no signal" for number in range(400)]
    start = find_triggers(log_of(config, tmp_path, [*asked, *[s.prompt for s in TRAIN]], last=120), make_inputs())
    assert start.missing.startswith("no drift: a classifier tells 120 logged from 120")
    start = find_triggers(log_of(config, tmp_path, asked[:30] * 9), make_inputs())
    assert start.missing == ("no drift: each side needs 100 distinct prompts, the log has 30 and the training data 120")


def test_a_log_that_can_not_be_read_is_named(config, tmp_path):
    with pytest.raises(DataError, match=r"has no text in column 'text'; did you mean 'prompt'\?|choices: prompt"):
        find_triggers(log_of(config, tmp_path, ["a"], column="text"), make_inputs())
    with pytest.raises(DataError, match=r"nowhere\.jsonl"):
        find_triggers(replace(config, trigger="drift", drift=DriftConfig(log="nowhere.jsonl")), make_inputs())
    with pytest.raises(ConfigError, match=r"trigger drift needs drift\.log"):
        check_rules(replace(config, trigger="drift"))
