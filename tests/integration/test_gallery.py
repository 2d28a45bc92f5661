"""Every shipped configuration goes the whole way at reduced size, with a tiny random model in place of its own."""

import inspect
import json
import sys
from pathlib import Path

import pytest
import yaml

sys.path.append(str(Path(__file__).parents[1]))
from byte_model import write_byte_model

import sparsegate
import sparsegate_gates
from sparsegate.cli import main

CONFIGS = sorted(Path(inspect.getfile(sparsegate)).with_name("configs").glob("*.yaml"))
RETRAINED = [path.stem for path in CONFIGS if path.read_text(encoding="utf-8").startswith("# sparsegate retrain")]
POLICIES = Path(inspect.getfile(sparsegate_gates)).with_name("policies")


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A folder with a model and a policy: the shipped one's rules for data, and none that a random model fails."""
    folder = tmp_path_factory.mktemp("gallery")
    write_byte_model(folder / "model", num_layers=3)
    policy = {"integrity": {"reason": "test: whole"}, "data_quality": {}}
    for name in ("standard", "pilot"):
        shipped = yaml.safe_load((POLICIES / f"{name}.yaml").read_text(encoding="utf-8"))
        policy["data_quality"] |= shipped["data_quality"]
    (folder / "policy.yaml").write_text(yaml.safe_dump(policy), encoding="utf-8")
    replies = {"reason": "test: any gain", "over_base": 1.0, "over_champion": 1.0, "minimum_n": 60}
    (folder / "replies.yaml").write_text(yaml.safe_dump(policy | {"likelihood": replies}), encoding="utf-8")
    return folder


def retrain(project, monkeypatch, capsys, name, **changes):
    """Run a shipped configuration at reduced size."""
    monkeypatch.chdir(project)
    reduced = {
        "model.source": "model",
        "model.cache_dir": "cache",
        "data.evaluation_limit": "60",
        "training.accelerator": "cpu",
        "training.max_steps": "2",
        "evaluation.device": "cpu",
        "evaluation.max_new_tokens": "2",
        "evaluation.general_text": "null",
        "safety.limit": "2",
        "safety.max_new_tokens": "2",
        "policy": "policy.yaml",
        **changes,
    }
    options = [f"--{field}={value}" for field, value in reduced.items()]
    code = main(["retrain", "--first", "--config", name, *options, "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


@pytest.mark.parametrize("name", RETRAINED)
def test_a_shipped_configuration_trains_evaluates_and_registers(name, project, monkeypatch, capsys):
    result = retrain(project, monkeypatch, capsys, name)
    assert result["version"] == 1
    assert {found["gate"]: found["verdict"] for found in result["report"]["results"]} == {
        "data_quality": "PASS",
        "integrity": "PASS",
    }


def test_replies_are_judged_by_how_likely_the_expected_ones_are(project, monkeypatch, capsys):
    changes = {
        "policy": "replies.yaml",
        "training.max_steps": "12",
        "registry.name": "replies",
        "safety.mix_fraction": "0",
    }
    report = retrain(project, monkeypatch, capsys, "instruction_tuning", **changes)["report"]
    (judged,) = [found for found in report["results"] if found["gate"] == "likelihood"]
    (check,) = judged["checks"]
    assert (check["name"], check["verdict"], check["n"]) == ("response perplexity / base", "PASS", 60)
    assert 0.1 < check["observed"] < check["interval"]["high"] < 1
