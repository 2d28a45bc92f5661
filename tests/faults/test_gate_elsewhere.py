"""``sparsegate gate --config FILE --candidate WHERE``: models that were trained elsewhere, on a tiny base model."""

import json
import shutil
from pathlib import Path

import pytest
import torch
import yaml
from byte_model import write_byte_model
from transformers import AutoModelForCausalLM

from sparsegate.cli import main
from sparsegate.contracts import Prediction
from sparsegate.files import read_json, read_records
from sparsegate.registry.promotion import has_versions
from sparsegate.workflow import gate as gate_module

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

POLICY = """
integrity: {reason: "test: whole and safe"}
regression: {reason: "test: forgetting blocks", margin: 1.0, minimum_n: 8, general_over_base: 1.2}
cost: {reason: "test: only its size is known", max_artifact_fraction: 1.05, max_train_seconds: 9, unmeasured: report}
"""
PATHS = """
regression: {reason: "test: the path is tested, not the model", margin: 1.0, minimum_n: 8}
"""


class Desk:
    """A project with a base model and a policy, in which candidates are judged."""

    def __init__(self, folder, capsys, uri):
        self.folder, self.uri, self._capsys = folder, uri, capsys
        rows = [{"id": f"r{i}", "prompt": f"message {i}", "response": ("no", "yes")[i % 2]} for i in range(36)]
        for name, chosen in (("train", rows[:24]), ("evaluation", rows[24:])):
            (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in chosen), encoding="utf-8")
        (folder / "policy.yaml").write_text(POLICY, encoding="utf-8")
        (folder / "paths.yaml").write_text(PATHS, encoding="utf-8")
        texts = [{"id": f"g{i}", "kind": "k", "prompt": f"Ask {i}", "response": f"Answer {i}."} for i in range(40)]
        (folder / "general.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in texts), encoding="utf-8")
        self.config()

    def config(self, **parts):
        config = {
            "model": {"source": "base", "cache_dir": "cache"},
            "data": {"train": "train.jsonl", "evaluation": "evaluation.jsonl", "id_column": "id", "max_tokens": 64},
            "safety": {"limit": 2, "max_new_tokens": 2},
            "evaluation": {"general_text": "general.jsonl"},
            "training": {"max_steps": 2, "batch_size": 4, "density": 0.2, "frozen_depth": 0, "calibration_batches": 1},
            "policy": "policy.yaml",
            **parts,
        }
        config["registry"] = {"name": "desk", "tracking_uri": self.uri, "actor": "ci", **config.get("registry", {})}
        (self.folder / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")

    def sparsegate(self, *arguments):
        """Run a command; return its exit code, its result and what it said."""
        self._capsys.readouterr()
        code = main([*arguments, "--json"])
        out, err = self._capsys.readouterr()
        assert "Traceback" not in err
        return code, json.loads(out) if out else None, err

    def gate(self, where, *more):
        return self.sparsegate("gate", "--config", "run.yaml", "--candidate", str(where), *more)

    def merged(self, name="merged"):
        """Write the base as a folder of its own."""
        shutil.copytree(self.folder / "base", self.folder / name)
        return self.folder / name

    def adapter(self, scale):
        """Write a LoRA that moves the base by noise."""
        peft = pytest.importorskip("peft")
        model = AutoModelForCausalLM.from_pretrained(self.folder / "base")
        torch.manual_seed(2)
        settings = peft.LoraConfig(r=2, target_modules=["down_proj", "lm_head"], task_type="CAUSAL_LM")
        adapted = peft.get_peft_model(model, settings)
        with torch.no_grad():
            for part, weight in adapted.named_parameters():
                if "lora_B" in part:
                    weight += scale * torch.randn_like(weight)
        adapted.save_pretrained(self.folder / "adapter", save_embedding_layers=False)
        return self.folder / "adapter"


@pytest.fixture(scope="module")
def base_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "base"
    write_byte_model(folder, num_layers=2)
    return folder


@pytest.fixture
def desk(registry, base_folder):
    shutil.copytree(base_folder, registry.folder / "base")
    return Desk(registry.folder, registry.capsys, registry.uri)


def checks(result, gate):
    """Return what a gate found, and its checks by name."""
    found = next(entry for entry in result["report"]["results"] if entry["gate"] == gate)
    return found, {check["name"]: check for check in found["checks"]}


def kept_answers(desk):
    return set((desk.folder / "cache" / "evaluations").iterdir())


def test_the_base_as_a_folder_from_elsewhere_is_judged_as_the_base_and_nothing_is_registered(desk):
    folder = desk.merged()
    code, result, err = desk.gate(folder)
    assert code == 0, err
    assert result["models"]["candidate"] == result["models"]["base"]
    _, named = checks(result, "regression")
    assert named["candidate - base"]["observed"] == 0
    assert named["general perplexity / base"]["observed"] == 1
    found, _ = checks(result, "cost")
    assert found["details"]["not_judged"] == ["max_train_seconds: not known of a model trained elsewhere"]

    assert not has_versions(desk.uri, "desk")
    code, _, err = desk.sparsegate("register", result["run_dir"])
    assert code == 2
    assert "it can't be registered" in err

    kept = kept_answers(desk)
    (folder / "README.md").write_text("another file, so another candidate", encoding="utf-8")
    desk.config(policy="paths.yaml")
    assert desk.gate(folder)[0] == 0
    # predictions, what red-team requests get out, two sets of free text, general texts; nothing of the base anew
    assert len(kept_answers(desk) - kept) == 5


def test_an_adapter_that_makes_the_base_forget_is_blocked(desk):
    code, result, err = desk.gate(desk.adapter(scale=1.0))
    assert code == 10, err
    _, named = checks(result, "regression")
    check = named["general perplexity / base"]
    assert check["verdict"] == "FAIL"
    assert check["observed"] > 1.2
    assert len(check["items"]) == 10
    assert checks(result, "integrity")[0]["verdict"] == "PASS"


def test_versions_and_runs_of_this_project_are_judged_from_mlflow_and_against_the_anchor(desk):
    desk.config(policy="paths.yaml")
    code, trained, err = desk.sparsegate("retrain", "--first", "--config", "run.yaml")
    assert code == 0, err
    run_id = read_json(Path(trained["run_dir"]) / "mlflow_run.json")["run_id"]
    desk.config(policy="paths.yaml", registry={"anchor": 1})
    for where in ("models:/desk@champion", f"runs:/{run_id}/model"):
        code, result, err = desk.gate(where)
        assert code == 0, err
        _, named = checks(result, "regression")
        assert named["candidate - champion"]["observed"] == 0
        assert named["candidate - anchor (version 1)"]["observed"] == 0
        answers = [
            read_records(Path(folder) / "evaluate" / "predictions.candidate.jsonl", Prediction)
            for folder in (trained["run_dir"], result["run_dir"])
        ]
        assert answers[0] == answers[1]


# --- what can't be judged -----------------------------------------------------------------------


def test_a_folder_with_a_nan_fails_integrity_and_is_never_loaded(desk):
    folder = desk.merged()
    model = AutoModelForCausalLM.from_pretrained(folder)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = float("nan")
    model.save_pretrained(folder)
    code, result, err = desk.gate(folder)
    assert code == 10, err
    found, _ = checks(result, "integrity")
    assert any("NaN or infinity in lm_head.weight" in check["reason"] for check in found["checks"])
    assert not (Path(result["run_dir"]) / "evaluate" / "predictions.candidate.jsonl").exists()


def test_a_folder_that_changes_before_it_is_loaded_leaves_no_answers_under_the_old_digest(desk, monkeypatch):
    folder = desk.merged()
    found = gate_module.find_candidate

    def find_and_change(*arguments):
        candidate = found(*arguments)
        (folder / "README.md").write_text("changed", encoding="utf-8")
        return candidate

    monkeypatch.setattr(gate_module, "find_candidate", find_and_change)
    desk.config(policy="paths.yaml")
    code, result, err = desk.gate(folder)
    assert (code, result) == (2, None)
    assert "changed while it was judged" in err
    assert not (desk.folder / "cache" / "evaluations").exists()


def _pickled_adapter(folder):
    (folder / "config.json").rename(folder / "adapter_config.json")
    (folder / "model.safetensors").rename(folder / "adapter_model.bin")


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (lambda folder: (folder / "training_args.bin").write_bytes(b"\x80\x04"), "training_args.bin, a pickled file"),
        (_pickled_adapter, "adapter_model.bin, a pickled file, which can run code when it is read"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").rename(folder / "adapter_config.json"), "no adapter_model.safetens"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no *.safetensors weights"),
        (shutil.rmtree, "is no folder"),
    ],
)
def test_what_is_no_model_is_refused_in_one_line(desk, spoil, problem):
    folder = desk.merged()
    spoil(folder)
    code, result, err = desk.gate(folder)
    assert (code, result) == (2, None)
    assert problem in err
    assert not (desk.folder / "runs").exists()


@pytest.mark.parametrize(
    ("where", "problem"),
    [
        ("models:/desk/7", "the registry has no such version"),
        ("models:/desk@live", "the registry has no such version"),
        ("models:/desk", "names no version or run"),
        ("runs:/0123/model", "there is no such run"),
    ],
)
def test_a_version_or_run_that_is_not_there_is_refused(desk, where, problem):
    code, result, err = desk.gate(where)
    assert (code, result) == (2, None), err
    assert problem in err


def test_a_configuration_without_a_candidate_is_refused(desk):
    code, _, err = desk.sparsegate("gate", "--config", "run.yaml")
    assert code == 2
    assert "--config needs --candidate" in err


def test_an_anchor_that_is_not_there_is_missing_evidence_before_anything_is_trained(desk):
    desk.config(registry={"anchor": 3})
    code, result, err = desk.sparsegate("retrain", "--first", "--config", "run.yaml")
    assert (code, result) == (11, None)
    assert "registry.anchor names version 3 of 'desk', which the registry does not have" in err
    assert not (desk.folder / "runs").exists()
