import json
from dataclasses import replace
from pathlib import Path

import pytest

from sparsegate.config import DataConfig, ModelConfig, RunConfig, SafetyConfig, TrainingConfig
from sparsegate.errors import ConfigError, DataError, UsageError
from sparsegate.models import BaseModel
from sparsegate.workflow.inputs import check_writable, load_inputs, make_manifest
from sparsegate.workflow.readiness import needs_of
from sparsegate_gates.policy import load_policy

LABELS = ("billing", "returns", "delivery")


def _write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def _messages(count, *, start=0, labels=LABELS):
    return [
        {"prompt": f"message number {start + number}", "response": labels[number % len(labels)], "channel": "email"}
        for number in range(count)
    ]


@pytest.fixture
def config(tmp_path):
    """A run on 60 messages with safety sets of a few rows."""
    prompts = [{"id": f"p{n}", "category": "ab"[n % 2], "prompt": f"prompt {n}"} for n in range(6)]
    canaries = [
        {"id": "c0", "prompt": "do harm", "response": "here is how", "harmful": True, "refused": False},
        {"id": "c1", "prompt": "do harm", "response": "no", "harmful": "False", "refused": "TRUE"},
    ]
    pairs = [
        {"id": f"m{n}", "prompt": f"ask {n}", "response": f"answer {n}", "kind": "refuse" if n < 6 else "help"}
        for n in range(12)
    ]
    return RunConfig(
        data=DataConfig(train=_write(tmp_path / "train.jsonl", _messages(60)), slice_columns=("channel",)),
        safety=SafetyConfig(
            red_team=_write(tmp_path / "red_team.jsonl", prompts),
            benign=_write(tmp_path / "benign.jsonl", prompts),
            canaries=_write(tmp_path / "canaries.jsonl", canaries),
            mix=_write(tmp_path / "mix.jsonl", pairs),
        ),
    )


def _with(config, part, **changes):
    return replace(config, **{part: replace(getattr(config, part), **changes)})


def test_the_three_sets_share_no_sample_and_leave_none_out(config):
    inputs = load_inputs(config)
    parts = [inputs.train, inputs.validation, inputs.evaluation]
    prompts = [sample.prompt for part in parts for sample in part]
    assert sorted(prompts) == sorted(row["prompt"] for row in _messages(60))
    assert all(len(part) > 0 for part in parts)
    assert inputs.labels == tuple(sorted(LABELS))
    assert inputs.mix_ids == frozenset()
    assert inputs.train[0].slices == {"channel": "email"}


def test_an_evaluation_file_is_used_whole_and_the_training_file_is_not_split_for_it(config, tmp_path):
    path = _write(tmp_path / "evaluation.jsonl", _messages(9, start=500))
    inputs = load_inputs(_with(config, "data", evaluation=path))
    assert len(inputs.evaluation) == 9
    assert len(inputs.train) + len(inputs.validation) == 60


def test_a_limit_judges_by_fewer_samples_and_trains_on_no_more(config):
    whole, limited, fewer = (load_inputs(_with(config, "data", evaluation_limit=limit)) for limit in (None, 5, 3))
    assert len(limited.evaluation) == 5
    ids = [{sample.id for sample in inputs.evaluation} for inputs in (fewer, limited, whole)]
    assert ids[0] < ids[1] < ids[2]
    assert [sample for sample in whole.evaluation if sample in limited.evaluation] == list(limited.evaluation)
    assert (limited.train, limited.validation) == (whole.train, whole.validation)


def test_the_evaluation_set_does_not_depend_on_the_seed_of_training(config):
    first = load_inputs(config)
    second = load_inputs(_with(config, "training", seed=7))
    assert first == second


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"train": "none.jsonl"}, DataError, "none.jsonl"),
        ({"prompt_column": "text"}, DataError, "has no column 'text'"),
        ({"evaluation_fraction": 0.0}, DataError, "no evaluation sample; set data.evaluation or"),
        ({"max_tokens": 1}, ConfigError, "data.max_tokens must be at least 8"),
    ],
)
def test_data_that_can_not_be_used_is_a_clear_error(config, change, error, message):
    with pytest.raises(error, match=message):
        load_inputs(_with(config, "data", **change))


def test_an_unknown_label_in_the_evaluation_file_is_named_with_its_samples(config, tmp_path):
    rows = _messages(6, start=500, labels=("billing", "retruns"))
    path = _write(tmp_path / "evaluation.jsonl", rows)
    with pytest.raises(DataError, match=r"unknown label 'retruns' in 3 evaluation samples .* did you mean 'returns'"):
        load_inputs(_with(config, "data", evaluation=path))


def test_a_classification_task_needs_two_labels(config, tmp_path):
    path = _write(tmp_path / "one.jsonl", _messages(60, labels=("billing",)))
    with pytest.raises(DataError, match=r"needs at least two labels, .*one.jsonl has \['billing'\]"):
        load_inputs(_with(config, "data", train=path))


def test_a_generation_task_has_no_labels(config):
    assert load_inputs(_with(config, "data", task="generation")).labels == ()


# --- safety sets --------------------------------------------------------------------------------


def test_the_safety_mix_makes_up_its_share_of_training_from_all_of_its_file(config):
    plain = load_inputs(config)
    inputs = load_inputs(_with(config, "safety", mix_fraction=0.1, mix_refusals=None))
    mix = [sample for sample in inputs.train if sample.id in inputs.mix_ids]
    assert len(mix) == round(len(plain.train) / 9)
    assert {int(sample.id[1:]) >= 6 for sample in mix} == {True, False}
    assert [sample for sample in inputs.train if sample.id not in inputs.mix_ids] == list(plain.train)
    assert (inputs.validation, inputs.evaluation, inputs.labels) == (plain.validation, plain.evaluation, plain.labels)


def test_a_larger_share_of_the_safety_mix_holds_the_smaller_one(config):
    asked = _with(config, "safety", mix_refusals=0.5)
    small, large = (load_inputs(_with(asked, "safety", mix_fraction=share)).mix_ids for share in (0.05, 0.15))
    assert 0 < len(small) < len(large)
    assert small < large


@pytest.mark.parametrize(("share", "num_refusals", "largest"), [(0.25, 2, 8), (0.5, 4, 12), (0, 0, 6), (1, 8, 6)])
def test_the_mix_refuses_as_often_as_asked_and_what_its_file_lacks_is_refused(share, num_refusals, largest, config):
    num_train = len(load_inputs(config).train)
    asked = _with(config, "safety", mix_fraction=8 / (8 + num_train), mix_refusals=share)
    fitting = largest / (largest + num_train)
    if largest < 8:
        with pytest.raises(
            DataError, match=f"needs 8 pairs, {num_refusals} of them refusals; .* {fitting:.3f}, change"
        ):
            load_inputs(asked)
        asked = _with(asked, "safety", mix_fraction=fitting)
        num_refusals = round(share * largest)
    inputs = load_inputs(asked)
    assert len([name for name in inputs.mix_ids if int(name[1:]) < 6]) == num_refusals
    assert len(inputs.mix_ids) == min(largest, 8)


def test_a_mix_that_does_not_tell_refusals_apart_is_taken_as_it_is_only_if_asked(config, tmp_path):
    plain = [{"id": f"m{n}", "prompt": f"ask {n}", "response": f"answer {n}"} for n in range(12)]
    asked = _with(config, "safety", mix_fraction=0.1, mix=_write(tmp_path / "plain.jsonl", plain))
    with pytest.raises(DataError, match=r"plain.jsonl has no column 'kind'.*; safety.mix_refusals needs it, unless"):
        load_inputs(asked)
    assert load_inputs(_with(asked, "safety", mix_refusals=None)).mix_ids


def test_a_limit_cuts_the_prompt_sets_evenly(config):
    inputs = load_inputs(_with(config, "safety", limit=4))
    for prompts in (inputs.red_team, inputs.benign):
        assert sorted(prompt.category for prompt in prompts) == ["a", "a", "b", "b"]


def test_canaries_have_flags_whatever_their_spelling(config):
    canaries = load_inputs(config).canaries
    assert [(canary["harmful"], canary["refused"]) for canary in canaries] == [(True, False), (False, True)]
    assert all(canary.keys() == {"id", "prompt", "response", "harmful", "refused"} for canary in canaries)


@pytest.mark.parametrize("change", [{"harmful": "maybe"}, {"refused": None}, {"response": None}])
def test_a_canary_without_its_label_is_refused(config, tmp_path, change):
    row = {"id": "c0", "prompt": "p", "response": "r", "harmful": "true", "refused": "false"}
    path = _write(tmp_path / "bad.jsonl", [{**row, **change}])
    with pytest.raises(DataError, match=r"bad.jsonl: row c0 needs id, prompt, response, and true or false"):
        load_inputs(_with(config, "safety", canaries=path))


# --- before anything is written -----------------------------------------------------------------


def test_reading_inputs_writes_nothing(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    load_inputs(config)
    check_writable(Path("runs/deep/folder"))
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_a_folder_under_a_file_is_not_writable(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match=r"output_dir .*file/runs can't be written .* choose another"):
        check_writable(tmp_path / "file" / "runs")


def test_a_folder_without_permission_is_not_writable(tmp_path, monkeypatch):
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UsageError, match="is not a folder you may write to"):
        check_writable(tmp_path / "runs")


# --- the run's key ------------------------------------------------------------------------------


@pytest.fixture
def key(config):
    """Gives the key of a run, with some of what decides it changed."""

    def key(changed=None, *, policy="standard", digest="abc"):
        changed = changed or config
        base = BaseModel(folder=Path("model"), source="model", digest=digest)
        return make_manifest(changed, load_policy(policy), load_inputs(changed), base).run_key

    return key


def test_the_same_inputs_give_the_same_key_wherever_they_are_kept(key, config):
    elsewhere = replace(config, output_dir="other", model=ModelConfig(cache_dir="cache"))
    assert key() == key() == key(elsewhere)


def test_whatever_decides_the_outcome_changes_the_key(key, config, tmp_path):
    keys = {
        "plain": key(),
        "training": key(replace(config, training=TrainingConfig(epochs=4))),
        "slot": key(replace(config, slot="2024-05-01")),
        "policy": key(policy="strict"),
        "base": key(digest="def"),
        "registry": key(_with(config, "registry", name="other")),
    }
    _write(tmp_path / "train.jsonl", _messages(61))
    keys["one message more"] = key()
    rows = _messages(61)
    rows[3]["response"] = "delivery" if rows[3]["response"] != "delivery" else "billing"
    _write(tmp_path / "train.jsonl", rows)
    keys["another label"] = key()
    canary = {"id": "x", "prompt": "p", "response": "r", "harmful": True, "refused": False}
    _write(Path(config.safety.canaries), [canary])
    keys["another canary"] = key()
    assert len(set(keys.values())) == len(keys)


def test_the_manifest_names_every_digest_and_version(config):
    inputs = load_inputs(config)
    base = BaseModel(folder=Path("model"), source="model", digest="abc")
    manifest = make_manifest(config, load_policy("standard"), inputs, base)
    assert manifest.data_sha256 == inputs.digests()
    parts = {"train", "validation", "evaluation", "red_team", "benign", "canaries", "general"}
    assert manifest.data_sha256.keys() == parts
    assert manifest.base_digest == "abc"
    assert manifest.environment["torch"]
    assert all(len(digest) == 64 for digest in (manifest.run_key, manifest.config_sha256, manifest.policy_sha256))


def test_attacks_multiply_the_red_team_prompts_and_not_the_items_that_gates_count(config):
    inputs = load_inputs(_with(config, "safety", attacks=("direct", "prefix_injection"), limit=3))
    assert [prompt.id for prompt in inputs.red_team[:3]] == [p.id for p in load_inputs(config).red_team[:3]]
    assert len(inputs.red_team) == 6
    assert len(inputs.benign) == 3
    needs = needs_of(load_policy("standard"), inputs)["harmful_output"]
    assert needs[0].has == 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attacks": ("rolepaly",)}, "did you mean 'role_play'"),
        ({"attacks": ()}, "at least one attack"),
        ({"attacks": ("direct", "direct")}, "each once"),
        ({"with_system_prompt": True}, r"needs data\.system_prompt"),
    ],
)
def test_attacks_that_cannot_be_made_are_refused(config, changes, message):
    with pytest.raises(ConfigError, match=message):
        load_inputs(_with(config, "safety", **changes))
