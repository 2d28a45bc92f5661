from __future__ import annotations

import os
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from sparsegate.errors import TrackingError
from sparsegate.registry.connection import redact
from sparsegate.registry.tracking import check_tracking


@contextmanager
def answering(status: int, body: bytes) -> Iterator[str]:
    """A server on loopback that gives one answer to everything; yields its host and port."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def closed_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
    return port


def failure(uri: str, timeout_s: float = 5.0) -> str:
    with pytest.raises(TrackingError) as raised:
        check_tracking(uri, timeout_s=timeout_s)
    message = str(raised.value)
    assert "\n" not in message
    assert "secret" not in message
    return message


def test_a_server_that_is_down_is_named_without_its_credentials() -> None:
    port = closed_port()
    message = failure(f"http://ana:secret@127.0.0.1:{port}")
    assert f"http://127.0.0.1:{port} can't be reached: Connection refused" in message


def test_a_server_that_never_answers_is_given_up_after_the_timeout() -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        assert "no answer within 0.3 s" in failure(f"http://127.0.0.1:{listener.getsockname()[1]}", timeout_s=0.3)


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (401, b"{}", "refuses the credentials (HTTP 401); set MLFLOW_TRACKING_USERNAME"),
        (403, b"no", "refuses the credentials (HTTP 403)"),
        (404, b"<html>secret</html>", "not like an MLflow tracking server (HTTP 404)"),
        (200, b"<html>hello</html>", "not like an MLflow tracking server (HTTP 200)"),
        (200, b"[1]", "not like an MLflow tracking server"),
        (503, b"", "is not ready (HTTP 503)"),
    ],
)
def test_a_server_that_answers_wrongly_is_refused_at_once(status: int, body: bytes, expected: str) -> None:
    with answering(status, body) as host:
        assert expected in failure(f"http://ana:secret@{host}")


def test_a_server_that_lists_experiments_is_accepted() -> None:
    with answering(200, b'{"experiments": []}') as host:
        check_tracking(f"http://{host}")


@pytest.mark.parametrize("uri", ["mlruns", "file:mlruns", "", "file:///var/mlruns", "/var/mlflow.db"])
def test_a_folder_store_is_refused_with_the_sqlite_uri_to_use(uri: str) -> None:
    used = "sqlite:////var/" if "/var/" in uri else "sqlite:///mlruns/mlflow.db"
    assert used in failure(uri)


@pytest.mark.parametrize(
    "uri", ["ftp://ana:secret@host", "localhost:5000", "http://[::1", "sqlite://", "sqlite:///:memory:"]
)
def test_a_uri_that_mlflow_cannot_use_is_refused_with_the_choices(uri: str) -> None:
    assert "sqlite:///FOLDER/mlflow.db" in failure(uri)


def test_a_database_without_its_driver_or_server_is_refused_without_credentials() -> None:
    message = failure(f"postgresql+pg8000://ana:secret@127.0.0.1:{closed_port()}/mlflow?password=secret")
    assert "postgresql+pg8000://127.0.0.1" in message


def test_a_new_sqlite_database_is_accepted_and_nothing_is_written(tmp_path: Path) -> None:
    check_tracking(f"sqlite:///{tmp_path}/new/folder/mlflow.db")
    assert list(tmp_path.iterdir()) == []


def test_a_sqlite_database_in_a_place_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "choose a folder you can write to" in failure(f"sqlite:///{tmp_path}/file/mlflow.db")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_sqlite_database_in_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert "choose a folder you can write to" in failure(f"sqlite:///{tmp_path}/mlflow.db")


def test_a_file_that_is_no_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    database.write_text("not a database, but longer than a database's header of one hundred bytes " * 3)
    before = database.read_bytes()
    assert "file is not a database" in failure(f"sqlite:///{database}")
    assert database.read_bytes() == before


def test_a_locked_database_is_refused_after_the_timeout(tmp_path: Path) -> None:
    database = tmp_path / "mlflow.db"
    holder = sqlite3.connect(database, isolation_level=None)
    try:
        holder.execute("BEGIN EXCLUSIVE")
        assert "database is locked" in failure(f"sqlite:///{database}", timeout_s=0.1)
    finally:
        holder.close()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://ana:se@cret@host:5000/x failed", "http://host:5000/x failed"),
        ("at http://token@host?key=secret, twice", "at http://host twice"),
        ("postgresql://ana:secret@h/db and mysql://bo:secret@h/db", "postgresql://h/db and mysql://h/db"),
        ("sqlite:////home/ana/mlflow.db", "sqlite:////home/ana/mlflow.db"),
        ("mail ana@host", "mail ana@host"),
    ],
)
def test_redact_takes_user_password_and_query_out_of_every_uri(text: str, expected: str) -> None:
    assert redact(text) == expected


def test_importing_the_registry_imports_neither_mlflow_nor_torch() -> None:
    code = (
        "import sys, sparsegate.registry.tracking, sparsegate.registry.promotion, sparsegate.registry.pyfunc;"
        "assert not {'mlflow', 'torch', 'pandas', 'lightning'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
