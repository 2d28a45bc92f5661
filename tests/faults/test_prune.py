"""Pruning removes what is old and nobody needs, and nothing else, whatever is there."""

import json
import os

import pytest

from sparsegate.files import sha256_file, write_json
from sparsegate.registry.connection import connect
from sparsegate.workflow.lock import model_lock


@pytest.fixture
def runs(registry):
    """Eight runs of a model, the oldest first; the third became a version. Each has an evaluation result of its own."""
    folder, cache = registry.folder / "runs", registry.folder / "cache" / "evaluations"
    cache.mkdir(parents=True)
    registry.add("2" * 16)
    (cache / "base.jsonl").write_text('{"of": "base"}\n', encoding="utf-8")
    for number in range(8):
        add_run(folder, cache, number)
    return folder


def add_run(folder, cache, number, name="desk"):
    run = folder / (str(number) * 16)
    (run / "evaluate").mkdir(parents=True, exist_ok=True)
    results = {"base": '{"of": "base"}\n', "candidate": f'{{"of": {number}}}\n'}
    (cache / f"{number}.jsonl").write_text(results["candidate"], encoding="utf-8")
    for role, text in results.items():
        (run / "evaluate" / f"predictions.{role}.jsonl").write_text(text, encoding="utf-8")
    files = {f"evaluate/{path.name}": sha256_file(path) for path in (run / "evaluate").glob("predictions.[bc]*.jsonl")}
    write_json(run / "ledger.json", {"stages": {"evaluate against base": files}})
    write_json(run / "config.json", {"registry": {"name": name}})
    write_json(run / "manifest.json", {})
    os.utime(run / "manifest.json", (number, number))
    return run


def prune(registry, *arguments):
    code, out, err = registry.run("prune", "desk", "--cache_dir", "cache", "--json", *arguments)
    return code, json.loads(out) if out else None, err


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))


def test_the_newest_and_those_behind_versions_stay_and_results_that_others_use(registry, runs):
    write_json(runs / "0000000000000000.learning_rate.json", {})
    before = registry.run("verify", "models:/desk/1", "--json")[1]
    size = sum(file.stat().st_size for n in "0134" for file in (runs / (n * 16)).rglob("*") if file.is_file()) + sum(
        (registry.folder / "cache" / "evaluations" / f"{n}.jsonl").stat().st_size for n in "0134"
    )
    code, found, _ = prune(registry, "--keep", "3", "--dry_run")
    assert (code, found["removed_bytes"], found["dry_run"]) == (0, size + len("{}\n"), True)
    assert len(names(runs)) == 9, "a dry run removes nothing"

    code, done, _ = prune(registry, "--keep", "3")
    assert (code, done["removed"], done["removed_bytes"]) == (0, found["removed"], found["removed_bytes"])
    assert names(runs) == [str(number) * 16 for number in (2, 5, 6, 7)]
    assert names(registry.folder / "cache" / "evaluations") == [
        "2.jsonl",
        "5.jsonl",
        "6.jsonl",
        "7.jsonl",
        "base.jsonl",
    ]
    assert done["kept"][str(runs / ("2" * 16))] == "version 1"
    assert registry.run("verify", "models:/desk/1", "--json")[1] == before
    assert prune(registry, "--keep", "3")[1]["removed"] == []


def test_other_models_runs_and_strange_files_stay(registry, runs):
    add_run(runs, registry.folder / "cache" / "evaluations", 9, name="shop")
    (runs / "notes").mkdir()
    (runs / "notes" / "config.json").write_text("not JSON", encoding="utf-8")
    (runs / "link").symlink_to((runs / ("1" * 16)).rename(registry.folder / "elsewhere"))
    assert prune(registry, "--keep", "1")[0] == 0
    assert names(runs) == ["2" * 16, "7" * 16, "9" * 16, "link", "notes"]
    assert (registry.folder / "elsewhere" / "ledger.json").exists()


def test_nothing_is_removed_while_a_run_is_at_work_or_the_registry_is_silent(registry, runs, monkeypatch):
    with model_lock(runs, "desk"):
        code, out, err = prune(registry, "--keep", "1")
        assert (code, out) == (30, None)
        assert "is at work" in err

    def fail(*_arguments, **_named):
        raise OSError("the server is gone")

    monkeypatch.setattr(type(connect(registry.uri)), "search_model_versions", fail)
    code, out, err = prune(registry, "--keep", "1")
    assert (code, out) == (20, None)
    assert "the server is gone" in err
    assert len(names(runs)) == 8


def test_a_prune_that_was_killed_is_finished_by_the_next(registry, runs, monkeypatch):
    def die(_path):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("shutil.rmtree", die)
        assert prune(registry, "--keep", "1")[0] == 20
    assert [path.name for path in runs.glob(".removing-*")] == [".removing-" + "6" * 16]
    code, found, _ = prune(registry, "--keep", "1")
    assert (code, len(found["removed"]) > 1, names(runs)) == (0, True, ["2" * 16, "7" * 16])
    assert list(runs.glob(".removing-*")) == []


def test_what_can_not_be_pruned_is_named(registry, tmp_path):
    assert "there is no folder of runs" in prune(registry, "--output_dir", str(tmp_path / "nowhere"))[2]
    assert "--keep must be at least 1, got 0" in prune(registry, "--keep", "0")[2]
