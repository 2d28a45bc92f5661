import pytest

from sparsegate.errors import DataError
from sparsegate.files import read_json
from sparsegate.workflow.ledger import Ledger


@pytest.fixture
def folder(tmp_path):
    for name in ("a.txt", "b.txt", "c.txt"):
        (tmp_path / name).write_text(name)
    return tmp_path


def _recorded(folder):
    ledger = Ledger(folder)
    ledger.record("validate", [folder / "a.txt"])
    ledger.record("train", [folder / "b.txt"])
    ledger.record("gate", [folder / "c.txt"])
    return ledger


def _done(ledger):
    return [stage for stage in ("validate", "train", "gate") if ledger.is_done(stage)]


def test_a_new_folder_has_no_stage_done(tmp_path):
    assert _done(Ledger(tmp_path)) == []


def test_what_was_recorded_is_done_also_for_the_next_process(folder):
    _recorded(folder)
    assert _done(Ledger(folder)) == ["validate", "train", "gate"]


@pytest.mark.parametrize("damage", ["change", "remove", "truncate"])
def test_a_stage_whose_output_is_not_as_it_left_it_is_not_done(folder, damage):
    _recorded(folder)
    output = folder / "b.txt"
    if damage == "remove":
        output.unlink()
    else:
        output.write_text("" if damage == "truncate" else "other")
    assert _done(Ledger(folder)) == ["validate", "gate"]


def test_a_folder_in_the_place_of_an_output_is_not_done(folder):
    _recorded(folder)
    (folder / "b.txt").unlink()
    (folder / "b.txt").mkdir()
    assert not Ledger(folder).is_done("train")


def test_recording_a_stage_again_forgets_the_later_ones(folder):
    _recorded(folder).record("train", [folder / "b.txt", folder / "c.txt"])
    assert _done(Ledger(folder)) == ["validate", "train"]


def test_a_forgotten_stage_runs_again_and_the_others_stay(folder):
    ledger = _recorded(folder)
    ledger.forget("train")
    ledger.forget("never recorded")
    assert _done(ledger) == _done(Ledger(folder)) == ["validate", "gate"]


def test_a_stage_without_its_output_is_refused_and_changes_nothing(folder):
    ledger = _recorded(folder)
    with pytest.raises(DataError, match=r"stage train left no .*none.txt"):
        ledger.record("train", [folder / "a.txt", folder / "none.txt"])
    assert _done(ledger) == _done(Ledger(folder)) == ["validate", "train", "gate"]


def test_a_stage_may_leave_nothing(folder):
    ledger = Ledger(folder)
    ledger.record("notify", [])
    assert Ledger(folder).is_done("notify")


def test_outputs_are_kept_relative_so_that_a_moved_run_is_still_done(folder):
    nested = folder / "run"
    (nested / "data").mkdir(parents=True)
    (nested / "data" / "train.jsonl").write_text("{}")
    Ledger(nested).record("validate", [nested / "data" / "train.jsonl"])
    assert list(read_json(nested / "ledger.json")["stages"]["validate"]) == ["data/train.jsonl"]
    nested.rename(folder / "moved")
    assert Ledger(folder / "moved").is_done("validate")


def test_a_ledger_that_is_no_json_is_a_clear_error(folder):
    (folder / "ledger.json").write_text("{")
    with pytest.raises(DataError, match=r"ledger.json is not JSON"):
        Ledger(folder)
