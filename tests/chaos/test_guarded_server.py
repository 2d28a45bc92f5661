"""A tracking server that asks who is there: credentials reach it from the environment, and nothing else gets them."""

import base64
import json
from urllib.request import Request, urlopen

import pytest
from nights import Project
from servers import mlflow_server

pytestmark = [
    pytest.mark.slow,
    # from MLflow, when the tests ask the registry
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]
PASSWORD = "correct-horse-battery-9"
TOKEN = base64.b64encode(f"admin:{PASSWORD}".encode()).decode()


def as_user(password):
    return (("MLFLOW_TRACKING_USERNAME", "admin"), ("MLFLOW_TRACKING_PASSWORD", password))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """A server with MLflow's basic authentication: its folder and its URI."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "auth.ini").write_text(
        "[mlflow]\ndefault_permission = NO_PERMISSIONS\nadmin_username = admin\n"
        f"database_uri = sqlite:///{folder / 'users.db'}\n"
        "authorization_function = mlflow.server.auth:authenticate_request_basic_auth\n"
        "auth_cache_ttl_seconds = 600\n",  # else each request hashes the password again
        encoding="utf-8",
    )
    environment = {
        "MLFLOW_AUTH_CONFIG_PATH": str(folder / "auth.ini"),
        "MLFLOW_AUTH_ADMIN_PASSWORD": PASSWORD,
        "MLFLOW_FLASK_SERVER_SECRET_KEY": "for this test",
    }
    with mlflow_server(folder, "--app-name", "basic-auth", **environment) as uri:
        # the first answer takes long: the server imports what it needs, and hashes the password
        credentials = {"Authorization": f"Basic {TOKEN}", "Content-Type": "application/json"}
        asked = Request(f"{uri}/api/2.0/mlflow/experiments/search", b'{"max_results": 1}', credentials)
        urlopen(asked).close()
        yield folder, uri


@pytest.mark.parametrize("environment", [(), as_user("wrong")])
def test_without_the_right_credentials_nothing_is_begun(server, processes, tmp_path, environment):
    project = Project(tmp_path / "project", processes, server[1], environment)
    ended = project.retrain("night")
    assert (ended.code, ended.result) == (2, None)
    assert "refuses the credentials (HTTP 401); set MLFLOW_TRACKING_USERNAME" in ended.said
    assert not (project.folder / "runs").exists()


def test_a_night_with_credentials_ends_well_and_leaves_them_nowhere(server, processes, tmp_path, monkeypatch):
    folder, uri = server
    for name, value in as_user(PASSWORD):
        monkeypatch.setenv(name, value)
    project = Project(tmp_path / "project", processes, uri, as_user(PASSWORD))
    assert project.retrain("night").code == 0
    assert project.verify()["verified"]
    assert project.state()["aliases"] == {"champion": 1}
    secrets = (PASSWORD.encode(), TOKEN.encode())
    files = [path for place in (project.folder, folder) for path in place.rglob("*") if path.is_file()]
    assert {"evidence.dsse.json", "MODEL_CARD.md", "err0.txt", "server.db", "log"} <= {path.name for path in files}
    leaks = [path.name for path in files for secret in secrets if secret in path.read_bytes()]
    assert leaks == []
    evidence = json.loads(next(path for path in files if path.name == "evidence.dsse.json").read_text())
    assert not any(secret in base64.b64decode(evidence["payload"]) for secret in secrets)
