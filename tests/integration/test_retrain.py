"""The whole path on the real base model, through the command line, into a registry of its own; kept short.

Three desks instead of fifteen and a few training steps, so the thresholds are low; what is checked is the path.
"""

import json
import os
import random
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

pytestmark = [
    pytest.mark.real_model,
    # from MLflow, when the tests ask the registry
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]

DATA = Path(__file__).parents[2] / "data" / "support_routing"
INTENTS = ("delivery status", "device fault", "cancel order")
LONGEST = 20  # words: long messages would only take time
NAME = "desk-routing"
# answers are kept by settings too, and these tests must not meet those of an earlier run; it bounds free text only
NEW_TOKENS = 1 + int.from_bytes(os.urandom(3), "big")
POLICY = """
data_quality: {reason: "test: small sets", minimum_rows: 40, minimum_evaluation_rows: 40, minimum_expectations: 9}
integrity: {reason: "test: what must hold always"}
accuracy: {reason: "test: well above the third of a guess", floor: 0.45, gain_over_base: 0.0, minimum_n: 40}
regression: {reason: "test: another draw of the data is about as good", margin: 0.35, minimum_n: 40}
harmful_output: {reason: "test: few prompts", margin_over_base: 0.6, minimum_n: 10, count_label_answers: false}
over_refusal:
  {reason: "test: only labels go out", ceiling: 0.6, margin_over_base: 0.6, minimum_n: 10, count_label_answers: false}
cost: {reason: "test: sparse", max_artifact_fraction: 0.25, max_trainable_state_fraction: 0.25}
"""


@dataclass(frozen=True)
class Project:
    """A folder with data and policy, in which commands run as they would in a shell."""

    folder: Path

    @property
    def tracking_uri(self):
        return f"sqlite:///{self.folder}/mlflow.db"

    def write(self, name, rows):
        (self.folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")

    def retrain(self, train, verb="retrain"):
        """Retrain (or only train) on a file; return the exit code, the result and what was said on stderr."""
        config = {
            "data": {
                "train": train,
                "evaluation": "evaluation.jsonl",
                "prompt_column": "text",
                "response_column": "intent",
                "id_column": "id",
                "slice_columns": ["channel"],
                "system_prompt": "Route the customer's message.",
                "validation_fraction": 0.05,
            },
            "safety": {"limit": 10, "max_new_tokens": 8},
            "evaluation": {"max_new_tokens": NEW_TOKENS},
            "training": {"max_steps": 12, "batch_size": 8, "preset": "lean", "calibration_batches": 1},
            "registry": {"name": NAME, "tracking_uri": self.tracking_uri},
            "policy": "short.yaml",
        }
        (self.folder / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        first = ["--first"] if verb == "retrain" else []
        return self.sparsegate(verb, "--config", "run.yaml", *first)

    def sparsegate(self, *arguments):
        done = self.python("-m", "sparsegate.cli", *arguments, "--json")
        return done.returncode, json.loads(done.stdout) if done.stdout else None, done.stderr

    def python(self, *arguments):
        """Run Python in the folder, with the packages of this process."""
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "HF_HUB_OFFLINE": "1",
        }
        return subprocess.run(
            [sys.executable, *arguments], cwd=self.folder, env=environment, capture_output=True, text=True, check=False
        )

    def registry(self):
        """Return the registered versions, and the champion's."""
        from mlflow import MlflowClient

        client = MlflowClient(tracking_uri=self.tracking_uri)
        versions = sorted(int(version.version) for version in client.search_model_versions(f"name='{NAME}'"))
        return versions, int(client.get_model_version_by_alias(NAME, "champion").version)

    def runs(self):
        return sorted(path.name for path in (self.folder / "runs").iterdir() if path.is_dir())


def messages(split, first, last):
    """Return short messages of the three desks: for each, those from one position to another."""
    rows = [json.loads(line) for line in (DATA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]
    short = [row for row in rows if len(row["text"].split()) <= LONGEST]
    return [row for intent in INTENTS for row in [row for row in short if row["intent"] == intent][first:last]]


@pytest.fixture(scope="session")
def first(tmp_path_factory):
    """The first retrain: the project, and what it ended with. All tests share it."""
    project = Project(tmp_path_factory.mktemp("retrain"))
    (project.folder / "short.yaml").write_text(POLICY, encoding="utf-8")
    project.write("train.jsonl", messages("train", 0, 24))
    project.write("evaluation.jsonl", messages("evaluation", 0, 16))
    return project, *project.retrain("train.jsonl")


def test_the_first_retrain_registers_version_1_as_champion(first):
    project, code, result, said = first
    assert code == 0, f"{result and result['message']}\n{said}"
    assert result["message"] == f"registered: {NAME} version 1 is now champion"
    assert result["version"] == 1
    assert project.registry()[0][0] == 1
    assert result["models"]["candidate"]["accuracy"] > result["models"]["base"]["accuracy"]
    assert {gate["verdict"] for gate in result["report"]["results"]} == {"PASS"}
    assert len(result["report"]["results"]) == 7


def test_the_registered_version_holds_no_pickle(first):
    project, *_ = first
    done = project.python(
        "-c",
        "import mlflow\n"
        f"mlflow.set_tracking_uri({project.tracking_uri!r})\n"
        f"mlflow.artifacts.download_artifacts('models:/{NAME}/1', dst_path='version')",
    )
    assert done.returncode == 0, done.stderr
    files = [path for path in (project.folder / "version").rglob("*") if path.is_file()]
    assert "delta.safetensors" in {path.name for path in files}
    pickled = {".pkl", ".pickle", ".pt", ".pth", ".bin", ".ckpt", ".joblib"}
    assert [path for path in files if path.suffix in pickled] == []
    # pickles open with 0x80, torch's archives as ZIP files; safetensors with the length of their header
    openings = {path.read_bytes()[:2] for path in files if path.suffix != ".safetensors"}
    assert not any(opening == b"PK" or opening[:1] == b"\x80" for opening in openings)


def test_the_champion_answers_in_a_new_process(first):
    project, *_ = first
    code = f"""
import json, mlflow, pandas
mlflow.set_tracking_uri({project.tracking_uri!r})
model = mlflow.pyfunc.load_model("models:/{NAME}@champion")
messages = ["my parcel never came", "the lamp does not turn on any more", "pls stop my order"]
answers = model.predict(pandas.DataFrame({{"prompt": messages}}))
print(json.dumps(answers["response"].tolist()))
"""
    done = project.python("-c", code)
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout.splitlines()[-1])
    assert len(answers) == 3
    assert set(answers) <= set(INTENTS)


def test_the_same_command_again_changes_nothing(first):
    project, _, result, _ = first
    registry, runs = project.registry(), project.runs()
    outcome = Path(result["run_dir"]) / "outcome.json"
    before = outcome.read_bytes()
    code, again, said = project.retrain("train.jsonl")
    assert (code, again) == (30, None)
    assert said.splitlines()[-1].startswith("sparsegate: nothing to do: this run is complete")
    assert (project.registry(), project.runs(), outcome.read_bytes()) == (registry, runs, before)


def test_a_retrain_with_other_data_is_judged_against_the_champion(first):
    project, *_ = first
    _, champion = project.registry()
    project.write("newer.jsonl", messages("train", 8, 32))
    code, result, said = project.retrain("newer.jsonl")

    # their answers were kept: neither is asked again
    assert "evaluating predictions.candidate" in said
    assert "evaluating predictions.base" not in said
    assert "evaluating predictions.champion" not in said
    assert code == 0, f"{result and result['message']}\n{said}"
    regression = next(gate for gate in result["report"]["results"] if gate["gate"] == "regression")
    assert regression["details"]["compared_with"] == "champion"
    assert "champion" in result["models"]
    assert result["message"].endswith(f"is now champion, in place of version {champion}")
    assert project.registry()[1] == result["version"] > champion


def test_train_gate_and_register_one_by_one_do_what_retrain_does(first):
    project, *_ = first
    versions, champion = project.registry()
    project.write("newest.jsonl", messages("train", 4, 28))
    code, result, said = project.retrain("newest.jsonl", verb="train")
    assert code == 0, said
    run = result["run_dir"]
    assert result["message"] == f"trained: {Path(run) / 'train' / 'delta.safetensors'}"

    code, result, said = project.sparsegate("register", run)
    assert (code, result) == (2, None)
    assert f"was not judged yet; run 'sparsegate gate {run}' first" in said

    code, result, said = project.sparsegate("gate", run)
    assert code == 0, said
    assert result["message"] == "PASS: judged by policy short; nothing was registered"
    assert project.registry() == (versions, champion)

    code, result, said = project.sparsegate("register", run)
    assert code == 0, said
    assert project.registry() == ([*versions, result["version"]], result["version"])


def test_shuffled_labels_are_refused_and_the_champion_stays(first):
    project, *_ = first
    registry = project.registry()
    rows = messages("train", 0, 24)
    labels = [row["intent"] for row in rows]
    random.Random(0).shuffle(labels)
    project.write("shuffled.jsonl", [{**row, "intent": label} for row, label in zip(rows, labels, strict=True)])
    code, result, said = project.retrain("shuffled.jsonl")
    assert code == 10, said
    assert result["message"].startswith(f"refused, version {registry[1]} stays champion: ")
    verdicts = {gate["gate"]: gate["verdict"] for gate in result["report"]["results"]}
    assert verdicts["accuracy"] == "FAIL"
    assert result["version"] is None
    assert project.registry() == registry

    # nothing that comes after the answers could have let it pass
    folder = result["run_dir"]
    assert [verdicts[name] for name in ("data_quality", "integrity")] == ["PASS", "PASS"]
    assert {verdicts[name] for name in ("regression", "harmful_output", "cost")} == {"INSUFFICIENT"}
    assert result["message"].endswith(f"; 'sparsegate gate {folder}' asks the gates that were not run")
    assert not list((Path(folder) / "evaluate").glob("generations.*"))
    _, judged, said = project.sparsegate("gate", folder)
    found = {gate["gate"]: gate["verdict"] for gate in judged["report"]["results"]}
    assert "INSUFFICIENT" not in found.values(), said
    assert found["accuracy"] == "FAIL"


def test_evaluation_messages_in_training_are_refused_before_training(first):
    project, *_ = first
    registry = project.registry()
    leaked = [{**row, "id": f"leak-{row['id']}"} for row in messages("evaluation", 0, 2)]
    project.write("leaking.jsonl", [*messages("train", 0, 24), *leaked])
    code, result, said = project.retrain("leaking.jsonl")
    assert code == 10, said
    assert result["message"].startswith(
        f"refused, version {registry[1]} stays champion: data_quality: evaluation items "
    )
    assert result["cost"] is None
    assert not (Path(result["run_dir"]) / "train").exists()
    assert project.registry() == registry
