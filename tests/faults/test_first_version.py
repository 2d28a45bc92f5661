"""A model's first version has no live one to be held against: somebody must say that this is right."""

import json

import pytest
import yaml
from byte_model import write_byte_model

from sparsegate.cli import main
from sparsegate.registry.connection import connect
from sparsegate.registry.promotion import has_versions

# from MLflow, when a version is made
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

MISSING = "no live model to hold a candidate against; if this is to be its first, give --first"


class Desk:
    """A folder with a base model and a configuration, in which commands run."""

    def __init__(self, registry):
        self.folder, self.uri, self._capsys = registry.folder, registry.uri, registry.capsys
        write_byte_model(self.folder / "base", num_layers=2)
        self.rows("train.jsonl", 0, 24)
        self.rows("evaluation.jsonl", 100, 112)
        self.config(self.uri)

    def rows(self, name, first, last):
        rows = [{"id": f"r{i}", "prompt": f"message {i}", "response": ("no", "yes")[i % 2]} for i in range(first, last)]
        (self.folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")

    def config(self, uri):
        (self.folder / "policy.yaml").write_text(
            'regression: {reason: "test", margin: 1.0, minimum_n: 8}\nintegrity: {reason: "test"}\n', encoding="utf-8"
        )
        config = {
            "model": {"source": "base", "cache_dir": "cache"},
            "data": {"train": "train.jsonl", "evaluation": "evaluation.jsonl", "id_column": "id"},
            "safety": {"limit": 2, "max_new_tokens": 2},
            "training": {"max_steps": 2, "batch_size": 4, "density": 0.2, "frozen_depth": 0, "calibration_batches": 1},
            "registry": {"name": "desk", "tracking_uri": uri},
            "policy": "policy.yaml",
        }
        (self.folder / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")

    def sparsegate(self, verb, *arguments):
        self._capsys.readouterr()
        code = main([verb, *arguments, "--json"])
        out, err = self._capsys.readouterr()
        assert "Traceback" not in err
        return code, json.loads(out) if out else None, err

    def retrain(self, *arguments):
        return self.sparsegate("retrain", "--config", "run.yaml", *arguments)


@pytest.fixture
def desk(registry):
    return Desk(registry)


def compared_with(result):
    found = next(entry for entry in result["report"]["results"] if entry["gate"] == "regression")
    return found["details"]["compared_with"]


def test_without_a_word_nothing_is_trained_or_registered(desk):
    code, result, said = desk.retrain()
    assert (code, result) == (11, None)
    assert MISSING in said
    assert not list((desk.folder / "runs").glob("*/"))
    assert not has_versions(desk.uri, "desk")

    code, plan, _ = desk.retrain("--dry_run")
    assert code == 11
    assert MISSING in plan["message"]
    assert plan["next"] == []


def test_an_empty_store_is_not_even_made(desk):
    desk.config("sqlite:///new.db")
    code, _, said = desk.retrain()
    assert code == 11
    assert "'desk' has no version in sqlite:///new.db" in said
    assert not (desk.folder / "new.db").exists()


def test_the_first_version_is_held_against_the_base_and_the_next_against_the_champion(desk):
    code, first, said = desk.retrain("--first")
    assert code == 0, said
    assert (first["version"], compared_with(first)) == (1, "base")

    desk.rows("train.jsonl", 8, 32)
    code, second, said = desk.retrain("--first")  # the word changes nothing where there is a champion
    assert code == 0, said
    assert (second["version"], compared_with(second)) == (2, "champion")

    desk.rows("train.jsonl", 4, 28)
    connect(desk.uri).delete_registered_model_alias("desk", "champion")
    code, lost, said = desk.retrain("--first")  # versions without a champion are no first run
    assert (code, lost["report"]["verdict"]) == (11, "INSUFFICIENT"), said


def test_a_run_that_was_trained_and_judged_by_hand_needs_the_word_too(desk):
    _, trained, _ = desk.sparsegate("train", "--config", "run.yaml")
    code, judged, said = desk.sparsegate("gate", trained["run_dir"])
    assert code == 0, said
    assert compared_with(judged) == "base"
    code, _, said = desk.sparsegate("register", trained["run_dir"])
    assert code == 11
    assert MISSING in said
    assert not has_versions(desk.uri, "desk")
    code, made, said = desk.sparsegate("register", trained["run_dir"], "--first")
    assert (code, made["version"]) == (0, 1), said
