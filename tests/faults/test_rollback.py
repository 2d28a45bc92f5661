"""The champion moves only to a version that holds, with a way back and a record; a refusal changes nothing."""

import json
import shutil

import pytest
from filelock import FileLock

from sparsegate.registry.connection import connect
from sparsegate.workflow import stages


@pytest.fixture
def two(registry):
    """Two versions, promoted one after the other."""
    registry.add("k1")
    assert registry.move("promote", "--version", "1")[0] == 0
    registry.add("k2", champion=1)
    assert registry.move("promote", "--version", "2")[0] == 0
    return registry


def test_promotion_and_rollback_move_both_aliases_and_are_recorded(two):
    assert two.aliases() == {"champion": 2, "previous_champion": 1}
    code, out, _ = two.move("rollback")
    assert (code, out) == (0, "rolled back: desk version 1 is champion again, in place of version 2\n")
    assert two.aliases() == {"champion": 1, "previous_champion": 2}
    code, out, _ = two.run("history", "desk", "--json")
    rows = {row["version"]: row for row in json.loads(out)["rows"]}
    assert [event["verb"] for event in rows[1]["events"]] == ["promote", "rollback"]
    assert {(event["actor"], event["reason"]) for event in rows[1]["events"]} == {("bo", "because")}
    assert (rows[2]["verdict"], rows[2]["accuracy"], rows[2]["train_seconds"], rows[2]["evidence"]) == (
        "PASS",
        0.9,
        12.0,
        "UNSIGNED",
    )


def test_history_is_a_table_for_people(two):
    code, out, _ = two.run("history", "desk")
    lines = out.splitlines()
    assert code == 0
    assert lines[0].split()[:4] == ["version", "accuracy", "training", "verdict"]
    assert lines[1].split()[:5] == ["2", "0.900", "12", "s", "PASS"]
    assert "champion" in lines[1]
    assert "promote: because" in out


def test_history_shows_a_version_whose_bytes_are_gone(two):
    shutil.rmtree(two.package(1))
    code, out, _ = two.run("history", "desk", "--json")
    assert code == 0
    assert [row["evidence"] for row in json.loads(out)["rows"]] == ["UNSIGNED", "missing or damaged"]


def test_a_second_rollback_does_not_flip_back_to_the_bad_version(two):
    two.move("rollback")
    code, out, err = two.move("rollback")
    assert (code, out) == (2, "")
    assert "was rolled back from version 2 to 1 already" in err
    assert two.aliases()["champion"] == 1


def test_rollback_to_a_version_whose_bytes_are_gone_changes_nothing(two):
    before = two.run("history", "desk", "--json")[1]
    away = two.package(1).rename(two.folder / "away")
    code, out, err = two.move("rollback", "--quarantine")
    assert (code, out) == (10, "")
    assert "desk version 1 can't be rolled back to: " in err
    away.rename(two.package(1))
    assert two.run("history", "desk", "--json")[1] == before


def test_rollback_to_a_deleted_version_changes_nothing(two):
    connect(two.uri).delete_model_version("desk", "1")
    before = two.aliases()
    code, out, err = two.move("rollback", "--to", "1")
    assert (code, out) == (2, "")
    assert "desk has no version 1" in err
    assert two.aliases() == before


def test_a_quarantined_delta_cannot_be_promoted_again_under_any_version(two):
    code, out, _ = two.move("rollback", "--quarantine", "--json")
    assert (code, len(json.loads(out)["quarantined"])) == (0, 1)
    two.add("k3", champion=1, content="k2")
    for verb, flag, version in (
        ("promote", "--version", "2"),
        ("rollback", "--to", "2"),
        ("promote", "--version", "3"),
    ):
        code, out, err = two.move(verb, flag, version)
        assert (code, out) == (10, "")
        assert "its delta is in quarantine" in err
    assert two.aliases()["champion"] == 1
    assert "quarantined" in two.run("history", "desk")[1]


def test_a_bad_champion_can_be_left_even_when_its_bytes_are_gone(two):
    shutil.rmtree(two.package(2))
    code, _, err = two.move("rollback", "--quarantine")
    assert code == 0, err
    assert "quarantine goes by the tag alone" in err
    assert two.aliases()["champion"] == 1


def test_a_version_judged_against_another_champion_is_not_promoted(two):
    two.add("k3", champion=1)
    code, out, err = two.move("promote", "--version", "3")
    assert (code, out) == (2, "")
    assert "version 3 was judged against version 1, and champion is version 2" in err
    assert two.aliases()["champion"] == 2


def test_promoting_the_champion_again_changes_nothing(two):
    before = two.run("history", "desk", "--json")[1]
    code, out, _ = two.move("promote", "--version", "2")
    assert (code, out) == (0, "desk version 2 is champion already\n")
    assert two.run("history", "desk", "--json")[1] == before


@pytest.mark.parametrize("arguments", [("promote", "--version", "2"), ("rollback",)])
def test_nothing_moves_while_another_run_holds_the_lock(two, arguments):
    before = two.aliases()
    with FileLock(two.folder / "runs" / ".desk.lock"):
        code, out, err = two.move(*arguments)
    assert (code, out) == (30, "")
    assert "another run of 'desk' is at work" in err
    assert two.aliases() == before


def test_a_stranger_who_moves_the_alias_meanwhile_is_noticed(two, monkeypatch):
    from sparsegate.workflow import versions

    record = versions.record_event

    def record_and_lose_the_race(*args, **kwargs):
        record(*args, **kwargs)
        connect(two.uri).set_registered_model_alias("desk", "champion", "3")

    two.add("k3", champion=2)
    monkeypatch.setattr(versions, "record_event", record_and_lose_the_race)
    code, _, err = two.move("rollback")
    assert code == 20
    assert "desk@champion is version 3" in err
    assert two.aliases() == {"champion": 3, "previous_champion": 1}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("promote", "desk", "--version", "1"), "--reason"),
        (("promote", "desk", "--reason", "r"), "--version"),
        (("rollback", "desk", "--reason", " "), "--reason must say why"),
        (("rollback", "desk", "--reason", "r"), "has no champion; there is nothing to roll back"),
        (("rollback", "../desk", "--reason", "r"), "registry.name may have"),
        (("history", "none"), "no registered model 'none'"),
    ],
)
def test_what_cannot_be_done_is_a_usage_error(registry, arguments, says):
    registry.add("k1")
    code, out, err = registry.run(*arguments)
    assert (code, out) == (2, "")
    assert says in err


def test_a_version_whose_registration_lost_its_answer_is_promoted_with_the_evidence_it_has(registry, monkeypatch):
    import mlflow

    create = mlflow.MlflowClient.create_model_version

    def create_and_lose(*args, **kwargs):
        create(*args, **kwargs)
        raise ConnectionResetError("connection reset")

    run, run_id = registry.prepare("k1")
    with monkeypatch.context() as broken:
        broken.setattr(mlflow.MlflowClient, "create_model_version", create_and_lose)
        assert stages.register_candidate(run, registry.report(run), None, run_id=run_id) == 1
    evidence = (registry.package(1) / "evidence.dsse.json").read_bytes()
    assert stages.register_candidate(run, registry.report(run), None, run_id=run_id) == 1
    for _ in range(2):
        stages.promote_version(run, 1)
    assert (registry.package(1) / "evidence.dsse.json").read_bytes() == evidence
    assert registry.aliases() == {"champion": 1}
    rows = json.loads(registry.run("history", "desk", "--json")[1])["rows"]
    assert [[event["verb"] for event in row["events"]] for row in rows] == [["promote"]]
