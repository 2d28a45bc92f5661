"""Two runs at once, a full disk, and strangers who move what a dead run left: nothing is lost and nothing doubled."""

import pytest

# from MLflow, when the tests ask the registry
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


@pytest.mark.parametrize("other", ["first", "another"])
def test_of_two_runs_at_once_one_wins_and_the_other_has_nothing_to_do(project, other):
    ended = project.all_at_once([project.job("first", number=0), project.job(other, number=1)])
    assert sorted(run.code for run in ended) == [0, 30]
    assert "another run of 'desk' is at work" in next(run.said for run in ended if run.code == 30)
    state = project.state()
    assert [number for number, *_ in state["versions"]] == [1]
    assert state["aliases"] == {"champion": 1}
    assert len(state["runs"]) == 1
    loser = ("first", other)[[run.code for run in ended].index(30)]
    assert project.retrain(loser).code == (30 if other == "first" else 0)


@pytest.mark.parametrize(
    "point",
    [
        "before save_checkpoint of step 4",
        "inside write_text policy/report.json",
        "inside write_text package/evidence.dsse.json",
        "before log_model_artifacts",
    ],
)
def test_a_full_disk_is_one_clear_line_and_the_next_try_goes_on(project, reference, point):
    ended = project.retrain("first", stop_at=point, how="full")
    assert (ended.code, ended.result) == (20, None)
    assert ended.said.splitlines()[-1].startswith("sparsegate: ")
    assert "No space left on device" in ended.said.splitlines()[-1]
    assert project.retrain("first").code == 0
    assert project.state() == reference.states["first"]


@pytest.mark.slow
def test_a_version_that_was_deleted_while_its_run_was_dead_is_made_again(project):
    assert project.retrain("first", stop_at="after create_model_version").code == -9
    project.client().delete_model_version("desk", "1")
    ended = project.retrain("first")
    assert (ended.code, project.state()["aliases"]) == (0, {"champion": ended.result["version"]})
    assert project.verify()["verified"]


@pytest.mark.slow
def test_a_champion_that_was_taken_away_before_registration_is_missing_evidence(project):
    assert project.retrain("first").code == 0
    assert project.retrain("second", stop_at="before create_logged_model").code == -9
    project.client().delete_registered_model_alias("desk", "champion")
    ended = project.retrain("second")
    assert ended.code == 11, ended
    assert "evaluate against base" in ended.said
    assert project.state()["aliases"] == {}


def test_a_champion_that_moved_after_registration_stays_and_the_run_says_why(project):
    assert project.retrain("first").code == 0
    assert project.retrain("second", stop_at="before set_registered_model_alias champion").code == -9
    project.client().set_registered_model_alias("desk", "champion", "2")
    assert project.retrain("third").code == 0
    for _ in range(2):
        project.client().delete_registered_model_alias("desk", "champion")
        ended = project.retrain("second")
        assert ended.code == 10
        assert "version 2 was judged against version 1, and champion is no champion" in ended.said
        assert "champion" not in project.client().get_registered_model("desk").aliases


def test_a_database_that_another_program_locks_for_longer_than_a_run_waits_is_worth_a_retry(project, reference):
    # what follows is the question whether the run still has its own lock, which waits for 5 s
    ended = project.retrain("first", stop_at="after log_text", how="lock:20")
    assert (ended.code, ended.result) == (20, None), ended
    assert "database is locked" in ended.said.splitlines()[-1]
    while (code := project.retrain("first").code) == 2:  # still locked
        pass
    assert code == 0
    assert project.state() == reference.states["first"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("point", "codes", "champion"),
    [
        ("after record train", (20, 0), 3),  # judged again, against the version that the stranger chose
        ("before set_registered_model_alias champion", (0, 30), 3),  # within the moment that no check can close
        ("before record gate against version 2", (20, 0), 3),
        ("after create_model_version", (10, 10), 1),  # the stranger has the last word, and the run says so
    ],
)
def test_a_stranger_who_moves_the_alias_is_never_overwritten_unseen(project, point, codes, champion):
    assert [project.retrain(slot).code for slot in ("first", "second")] == [0, 0]
    ended = [project.retrain("third", stop_at=point, how="move:1"), project.retrain("third")]
    assert tuple(run.code for run in ended) == codes, ended
    state = project.state()
    assert [number for number, *_ in state["versions"]] == [1, 2, 3]
    assert state["aliases"]["champion"] == champion
    assert project.verify()["verified"]
