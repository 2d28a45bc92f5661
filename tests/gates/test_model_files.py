"""Folders of models that were trained elsewhere."""

import pytest
import torch
from safetensors.torch import save_file

from sparsegate.contracts import GateContext, Verdict
from sparsegate.errors import DataError, ModelError
from sparsegate.files import write_json
from sparsegate.models.artifact import file_digests, refuse_pickles
from sparsegate_gates.cost import Cost, CostSettings
from sparsegate_gates.integrity import Integrity, IntegritySettings


@pytest.fixture
def folder(tmp_path):
    path = tmp_path / "model"
    path.mkdir()
    save_file({"a.weight": torch.ones(2, 3), "b.weight": torch.ones(4)}, path / "model.safetensors")
    for name in ("config.json", "tokenizer.json", "chat_template.jinja", "README.md", "LICENSE"):
        (path / name).write_text("{}", encoding="utf-8")
    return path


def judge(folder, *, files=None, same=True, loaded=True):
    artifacts = {"candidate": folder, "base_model": folder}
    if loaded:
        artifacts["loaded"] = folder.parent / "loaded.json"
        digests = file_digests(folder) if files is None else files
        write_json(artifacts["loaded"], {"files": digests, "as the base's": {"vocabulary": same}})
    return Integrity().run(GateContext(IntegritySettings("test"), artifacts, folder.parent))


def test_a_sound_folder_passes_with_the_digest_of_every_file(folder):
    result = judge(folder)
    assert result.verdict is Verdict.PASS
    assert result.details["files"] == [f"{name} {digest}" for name, digest in sorted(file_digests(folder).items())]
    assert len(result.details["files"]) == 6


def _nan(folder):
    save_file({"a.weight": torch.tensor([1.0, float("inf")])}, folder / "adapter.safetensors")


def _truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-4])


def _link(folder):
    (folder / "vocab.txt").symlink_to(folder / "config.json")


def _linked_folder(folder):
    (folder / "more").symlink_to(folder.parent)


def _subfolder(folder):
    (folder / "checkpoint").mkdir()
    (folder / "checkpoint" / "notes.txt").write_text("x")


@pytest.mark.parametrize(
    ("spoil", "problem"),
    [
        (_nan, "NaN or infinity in a.weight"),
        (_truncate, "model.safetensors is not a whole safetensors file"),
        (_link, "vocab.txt is a link"),
        (_linked_folder, "more is a link"),
        (_subfolder, "checkpoint/notes.txt lies in a subfolder"),
        (lambda folder: (folder / "modeling.py").write_text("1"), "modeling.py is no file of a model"),
        (lambda folder: (folder / ".hidden").write_text("1"), ".hidden is no file of a model"),
        (lambda folder: (folder / "config.json").chmod(0o755), "config.json is executable"),
        (lambda folder: (folder / "model.safetensors").unlink(), "0 is not at least 1"),
    ],
)
def test_an_unsound_folder_fails(folder, spoil, problem):
    spoil(folder)
    result = judge(folder)
    assert result.verdict is Verdict.FAIL
    assert any(problem in check.reason for check in result.checks)


def test_files_that_changed_after_the_evaluation_fail(folder):
    result = judge(folder, files={**file_digests(folder), "config.json": "0" * 64, "gone.json": "1" * 64})
    assert result.verdict is Verdict.FAIL
    assert "config.json, gone.json changed after the evaluation" in result.reason


def test_a_folder_that_was_not_evaluated_is_no_evidence(folder):
    assert judge(folder, loaded=False).verdict is Verdict.INSUFFICIENT
    assert judge(folder, files={}).verdict is Verdict.ERROR


def test_another_tokenizer_than_the_bases_is_said(folder):
    assert judge(folder, same=False).checks[-1].reason == "not as the base's: vocabulary"
    assert judge(folder).checks[-1].reason == ""


@pytest.mark.parametrize("name", ["adapter_model.bin", "sub/optimizer.pt", "scaler.PKL"])
def test_a_pickle_anywhere_is_refused(folder, name):
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).write_bytes(b"\x80\x04")
    with pytest.raises(ModelError, match=f"{name}, a pickled file"):
        refuse_pickles(folder)


# --- cost, where only the size is known ---------------------------------------------------------


def cost(folder, *, artifact=50, base=100, **settings):
    path = folder / "size.json"
    write_json(path, {"artifact_bytes": artifact, "base_bytes": base})
    values = {"reason": "test", "max_artifact_fraction": 1.05, "max_train_seconds": 9.0, **settings}
    return Cost().run(GateContext(CostSettings(**values), {"size": path}, folder))


def test_what_training_took_is_insufficient_where_it_was_not_measured(tmp_path):
    result = cost(tmp_path)
    assert result.verdict is Verdict.INSUFFICIENT
    assert "not known of a model trained elsewhere" in result.reason


def test_a_policy_can_have_it_reported_and_still_judges_the_size(tmp_path):
    result = cost(tmp_path, unmeasured="report", max_train_seconds_over_champion=3.0)
    assert result.verdict is Verdict.PASS
    assert [line.partition(":")[0] for line in result.details["not_judged"]] == [
        "max_train_seconds",
        "max_train_seconds_over_champion",
    ]
    assert cost(tmp_path, unmeasured="report", artifact=200).verdict is Verdict.FAIL


def test_a_policy_whose_bounds_are_all_unmeasured_asks_nothing_and_does_not_pass(tmp_path):
    result = cost(tmp_path, unmeasured="report", max_artifact_fraction=None, max_peak_memory_bytes=9)
    assert result.verdict is Verdict.ERROR


def test_no_size_is_not_a_small_one(tmp_path):
    with pytest.raises(DataError, match="artifact_bytes must be measured"):
        cost(tmp_path, artifact=0)
