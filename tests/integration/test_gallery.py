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
    return folder


@pytest.mark.parametrize("name", RETRAINED)
def test_a_shipped_configuration_trains_evaluates_and_registers(name, project, monkeypatch, capsys):
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
    }
    options = [f"--{field}={value}" for field, value in reduced.items()]
    code = main(["retrain", "--first", "--config", name, *options, "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    result = json.loads(out)
    assert result["version"] == 1
    assert {found["gate"]: found["verdict"] for found in result["report"]["results"]} == {
        "data_quality": "PASS",
        "integrity": "PASS",
    }
