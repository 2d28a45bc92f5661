"""Nights of a project with a tiny model: one left alone, and others that are not."""

import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

from nights import Processes, Project


@dataclass(frozen=True)
class Reference:
    """What two nights end with when nothing goes wrong, and the points that their processes pass."""

    states: dict
    points: dict


@pytest.fixture(scope="session")
def processes(tmp_path_factory):
    running = Processes(tmp_path_factory.mktemp("processes"))
    yield running
    running.close()


@pytest.fixture
def project(tmp_path, processes):
    return Project(tmp_path / "project", processes)


@pytest.fixture(scope="session")
def reference(tmp_path_factory, processes):
    return nights_left_alone(Project(tmp_path_factory.mktemp("reference") / "project", processes))


def nights_left_alone(project):
    states, points = {}, {}
    for slot in ("first", "second"):
        trace = project.folder / f"{slot}.trace"
        ended = project.retrain(slot, trace=trace)
        assert ended.code == 0, ended
        points[slot] = list(dict.fromkeys(trace.read_text(encoding="utf-8").splitlines()))
        states[slot] = project.state()
    assert project.verify()["verified"]
    return Reference(states, points)
