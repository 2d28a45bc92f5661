"""A run that is killed, wherever it is, and started again ends as if nothing had happened."""

import random

import pytest

# from MLflow, when the tests ask the registry
pytestmark = pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated")


def test_two_nights_leave_two_versions_with_evidence_and_a_way_back(reference):
    first, second = reference.states["first"], reference.states["second"]
    assert first["aliases"] == {"champion": 1}
    assert second["aliases"] == {"champion": 2, "previous_champion": 1}
    assert [version[0] for version in second["versions"]] == [1, 2]
    assert [status for _, status in second["runs"]] == ["FINISHED", "FINISHED"]
    assert second["moves"] == [[("promote", 1, 2)], [("promote", None, 1)]]


def test_a_run_killed_again_and_again_on_its_way_ends_as_one_that_was_left_alone(project, reference):
    assert project.retrain("first").code == 0
    points = reference.points["second"]
    for point in points[:: len(points) // 24]:
        # 20 where it is a gate's own process that dies
        assert project.retrain("second", stop_at=point).code in (-9, 20), f"{point} was not reached"
    ended = project.retrain("second")
    assert ended.code in (0, 30), ended
    assert project.state() == reference.states["second"]
    assert project.verify()["verified"]
    assert project.retrain("second").code == 30


def test_a_run_killed_between_its_delta_and_what_it_cost_reports_the_same_losses(project, reference):
    assert project.retrain("first", stop_at="after replace train/delta.safetensors").code == -9
    assert project.retrain("first").code == 0
    assert project.state() == reference.states["first"]


@pytest.mark.parametrize("seed", range(1))
def test_chance_kills_end_as_if_nothing_had_happened(project, reference, seed):
    draw = random.Random(seed)
    for slot in ("first", "second"):
        project.retrain(slot, stop_at=draw.choice(reference.points[slot]))
        assert project.retrain(slot).code in (0, 30)
    assert project.state() == reference.states["second"]
    assert project.verify()["verified"]
