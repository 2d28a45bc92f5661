"""Nights that are planned, waited for and looked back on: what starts a run, and what is known of it afterwards."""

import json
import re

import pytest

# from MLflow, when the tests ask the registry
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")

FILES = ["data", "gate data", "train"]


def retrain(project, slot, *arguments, **job):
    job = project.job(slot, **job)
    return project.all_at_once([{**job, "arguments": [*job["arguments"], *arguments]}])[0]


def contents(folder):
    files = {path for path in folder.rglob("*") if path.is_file() and not path.name.startswith(("out", "err"))}
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.slow
def test_a_dry_run_says_what_a_run_would_do_and_writes_nothing(project):
    def plan(code=0, slot="first"):
        project.job(slot)  # writes the configuration
        before = contents(project.folder)
        ended = retrain(project, slot, "--dry_run")
        assert ended.code == code, ended
        assert contents(project.folder) == before
        return ended.result

    new = plan()
    assert (new["done"], new["champion"], new["lock"]) == ([], None, None)
    against = ["evaluate against base", "gate against base"]
    assert new["next"] == [*FILES, "answers", "gate answers", *against, "register", "promote"]
    assert new["triggers"] == ["new data: there is no champion yet", "schedule: slot first"]

    assert project.retrain("first", stop_at="before record train").code == -9
    killed = plan()
    assert (killed["done"], killed["next"][0], killed["run_dir"]) == (FILES[:2], "train", new["run_dir"])
    status = project.sparsegate_anyhow("status", "desk", "--json")
    assert status.code == 10
    assert "was killed; the same command goes on with it" in status.result["message"]

    assert project.retrain("first").code == 0
    complete = plan(code=30)
    assert (complete["done"][-1], complete["next"]) == ("promote", [])
    assert "this run is complete (registered: desk version 1 is now champion)" in complete["message"]
    assert project.history()[0]["triggers"] == new["triggers"], "why it was started first stays on record"
    assert project.sparsegate_anyhow("status", "desk", "--json").code == 0
    assert plan(slot="second")["next"][5:7] == ["evaluate against version 1", "gate against version 1"]


def test_a_dry_run_makes_no_database(project):
    (project.folder / "mlflow.db").unlink()
    ended = retrain(project, "first", "--dry_run")
    assert (ended.code, ended.result["champion"]) == (0, None)
    assert not (project.folder / "mlflow.db").exists()
    assert not (project.folder / "runs").exists()


@pytest.mark.slow
def test_a_night_that_waits_for_new_data_leaves_a_heartbeat_and_new_data_starts_it(project):
    beat = project.folder / "runs" / "desk.heartbeat.json"
    assert retrain(project, "", "--trigger", "new_data").code == 0
    assert json.loads(beat.read_text())["result"] == "registered: desk version 1 is now champion"
    (project.folder / "asked.jsonl").write_text('{"prompt": "what is this"}\n' * 3, encoding="utf-8")
    for trigger, why in (("drift", "each side needs 100 distinct prompts, the log has 1"), ("new_data", "no new data")):
        ended = retrain(project, "", "--trigger", trigger, "--drift.log", "asked.jsonl")
        assert (ended.code, ended.result) == (30, None)
        assert f"nothing to do: {'no drift: ' if trigger == 'drift' else ''}{why}" in ended.said
    assert (json.loads(beat.read_text())["exit_code"], project.aliases()) == (30, {"champion": 1})

    with (project.folder / "train.jsonl").open("a", encoding="utf-8") as file:
        file.write(json.dumps({"id": "n", "prompt": "my money is gone", "response": "refund"}) + "\n")
    assert retrain(project, "", "--trigger", "new_data").code == 0
    assert [row["triggers"] for row in project.history()] == [
        ["new data: train changed since version 1"],
        ["new data: there is no champion yet"],
    ]
    run = project.client().search_runs([project.client().get_experiment_by_name("desk").experiment_id])[0]
    assert run.data.tags["sparsegate.triggers"] == "new data: train changed since version 1"
    assert run.data.tags["mlflow.note.content"].startswith("## PASS: desk run ")
    assert (run.info.run_name[:5], run.data.tags["mlflow.user"]) == ("desk-", "night")
    version = project.client().get_model_version("desk", "2")
    assert re.match(r"accuracy [\d.]+ \(base [\d.]+, champion [\d.]+\), PASS by policy policy\n", version.description)
    assert run.data.metrics["heartbeat_unix_s"] > run.info.start_time / 1000 - 1
