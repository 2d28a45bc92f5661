"""A tracking server that goes away, answers 500, is slow, or loses answers to what it did: a rerun heals it."""

import pytest
from nights import Project
from proxy import Proxy
from servers import mlflow_server

pytestmark = [
    pytest.mark.slow,
    # from MLflow, when the tests ask the registry
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]
IMPATIENT = (("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"), ("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1"))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    with mlflow_server(tmp_path_factory.mktemp("server")) as uri:
        yield uri


@pytest.fixture(scope="module")
def proxy(server):
    running = Proxy(server)
    yield running
    running.close()


@pytest.fixture
def served(tmp_path, processes, proxy):
    """A project of its own name whose commands reach the server through the proxy."""
    proxy.reset()
    yield Project(tmp_path / "project", processes, proxy.uri, IMPATIENT, name=tmp_path.name)
    proxy.reset()


def assert_nothing_is_doubled(project):
    state = project.state()
    assert [number for number, *_ in state["versions"]] == [1]
    assert state["aliases"] == {"champion": 1}
    assert [status for _, status in state["runs"]] == ["FINISHED"]
    assert state["moves"] == [[("promote", None, 1)]]
    assert project.verify()["verified"]


@pytest.mark.parametrize("fault", ["lose", "fail"])
def test_answers_that_are_lost_double_nothing(served, proxy, fault):
    lost = set()

    def lose_the_first_of_each(_number, name):
        known = name in lost
        lost.add(name)
        return None if known else fault

    proxy.reset(lose_the_first_of_each)
    ended = served.retrain("night")
    assert ended.code == 20, ended  # the answer to the creation of the MLflow run was lost
    while ended.code == 20 and len(proxy.writes) < 200:
        ended = served.retrain("night")
    assert ended.code == 0, ended
    assert {"runs/create", "model-versions/create", "registered-models/alias"} <= lost
    proxy.reset()
    assert_nothing_is_doubled(served)


def test_a_server_that_goes_away_at_any_write_is_worth_a_retry(served, proxy):
    reached = set()
    for down_from in (0, 2, 5, 6, 8, 10, 12, 1, 3, 0):
        action = "drop" if down_from % 2 == 0 else "refuse"
        proxy.reset(lambda number, _, first=down_from, action=action: action if number >= first else None)
        ended = served.retrain("night")
        reached.add(proxy.writes[down_from])
        assert (ended.code, ended.result) == (20, None), ended
        assert ended.said.splitlines()[-1].startswith("sparsegate: "), ended.said
    assert len(reached) >= 5
    proxy.reset(lambda _number, _name: "slow")
    assert served.retrain("night").code == 0
    proxy.reset()
    assert_nothing_is_doubled(served)
