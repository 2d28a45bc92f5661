"""Two machines that share only a database: processes with folders of their own."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from mlflow.store.db.utils import _upgrade_db, create_sqlalchemy_engine

from sparsegate.cli import main
from sparsegate.config import RegistryConfig
from sparsegate.errors import LockedError, RegistryError
from sparsegate.registry import lease as leases
from sparsegate.registry.connection import connect
from sparsegate.registry.lease import fence, lease, lease_holder
from sparsegate.registry.promotion import promote
from sparsegate.registry.versions import quarantine
from sparsegate.workflow.lock import registry_lock

RACER = """
import sys
from pathlib import Path
from sparsegate.config import RegistryConfig
from sparsegate.errors import LockedError
from sparsegate.workflow.lock import registry_lock

print("ready", flush=True)
sys.stdin.readline()
try:
    with registry_lock(Path(sys.argv[1]), RegistryConfig(name="desk", tracking_uri=sys.argv[2])):
        print("held", flush=True)
        sys.stdin.readline()
except LockedError as error:
    print(f"exit {int(error.exit_code)}: {error}", flush=True)
"""


@pytest.fixture
def uri(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/tracking/mlflow.db"


@pytest.fixture
def racers(tmp_path: Path, uri: str):
    started = []
    for machine in ("one", "two"):
        (tmp_path / machine).mkdir()
        command = [sys.executable, "-c", RACER, str(tmp_path / machine), uri]
        started.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1))
    yield started
    for process in started:
        process.kill()
        process.communicate()


def test_of_two_processes_with_folders_of_their_own_exactly_one_has_the_lock(racers, tmp_path, uri) -> None:
    for process in racers:
        assert process.stdout.readline() == "ready\n"
    for process in racers:
        process.stdin.write("go\n")
    said = sorted(process.stdout.readline() for process in racers)
    assert said[1] == "held\n"
    assert said[0].startswith("exit 30: another run of 'desk' is at work on sqlite:///")
    assert any(f"(process {process.pid} on " in said[0] for process in racers), "it says who has it"


def test_a_killed_holder_is_followed_at_once_in_its_folder_and_after_its_lease_elsewhere(tmp_path, uri) -> None:
    killed = (
        "import os, sys; from pathlib import Path; from sparsegate.config import RegistryConfig as C\n"
        "from sparsegate.workflow.lock import registry_lock\n"
        "with registry_lock(Path(sys.argv[1]), C(name='desk', tracking_uri=sys.argv[2])): os._exit(9)"
    )
    (tmp_path / "one").mkdir()
    for _ in range(2):  # the second finds what the first has left
        command = [sys.executable, "-c", killed, str(tmp_path / "one"), uri]
        assert subprocess.run(command, check=False, timeout=leases.LEASE_S).returncode == 9
    holder = lease_holder(uri, "desk")
    assert holder is not None
    with lease(uri, "desk", holder="another machine", lease_s=0.5):
        assert lease_holder(uri, "desk") == "another machine"
    assert lease_holder(uri, "desk") is None


def test_a_holder_that_beats_is_never_followed_however_long_it_is_watched(uri) -> None:
    with (
        lease(uri, "desk", holder="first", beat_s=0.05),
        pytest.raises(LockedError, match=r"at work on sqlite:.* \(first\); try again later"),
        lease(uri, "desk", holder="second", lease_s=30),
    ):
        pass


def test_whoever_lost_the_lock_can_neither_move_an_alias_nor_quarantine(uri) -> None:
    client = connect(uri)
    client.create_registered_model("desk")
    for _ in range(2):
        client.create_model_version("desk", "file:///nowhere")
    client.set_registered_model_alias("desk", "champion", "1")
    with lease(uri, "desk", holder="asleep", beat_s=1000):
        taken = threading.Thread(target=lambda: _take(uri))
        taken.start()
        taken.join()
        for write in (
            lambda: promote(uri, "desk", 2, "champion", expected=1),
            lambda: quarantine(uri, "desk", "0" * 64, reason="bad"),
        ):
            with pytest.raises(LockedError, match=r"was taken over.*did not renew it in time; nothing more is written"):
                write()
    found = client.get_registered_model("desk")
    assert ({key: int(number) for key, number in found.aliases.items()}, found.tags) == ({"champion": 1}, {})


def _take(uri: str) -> None:
    with lease(uri, "desk", holder="awake", lease_s=0.2):
        pass


def test_the_lock_of_one_model_is_no_matter_of_another(uri) -> None:
    with lease(uri, "desk", holder="first"), lease(uri, "sales", holder="second", lease_s=0.1):
        fence("desk")
        fence("sales")


def test_status_names_who_holds_the_lock_in_the_database(uri, tmp_path, capsys) -> None:
    with lease(uri, "desk", holder="process 7 on far-away"):
        assert main(["status", "desk", "--output_dir", str(tmp_path), "--tracking_uri", uri]) == 11
    assert "\ndatabase    locked by process 7 on far-away\n" in capsys.readouterr().out


def test_the_token_only_grows(uri, monkeypatch) -> None:
    tokens = []
    monkeypatch.setattr(leases._Lease, "release", lambda held: tokens.append(held.locks.read().token))
    for number in range(3):
        with lease(uri, "desk", holder=str(number), dead=str(number - 1)):
            pass
    assert tokens == [1, 2, 3]


def test_a_database_that_a_stranger_has_locked_is_one_clear_error(uri, tmp_path) -> None:
    with lease(uri, "desk", holder="makes the table"):
        pass
    stranger = sqlite3.connect(tmp_path / "tracking" / "mlflow.db", isolation_level=None)
    try:
        stranger.execute("BEGIN IMMEDIATE")
        with pytest.raises(RegistryError, match=r"^locking 'desk' at sqlite:.* failed: .*database is locked"):
            lease(f"{uri}?timeout=0.1", "desk", holder="late").__enter__()
    finally:
        stranger.close()


@pytest.mark.parametrize("who_is_first", ["MLflow", "the lock"])
def test_mlflow_opens_and_upgrades_a_database_with_the_table_of_locks(uri, who_is_first) -> None:
    if who_is_first == "MLflow":
        connect(uri).search_experiments()
    with lease(uri, "desk", holder="first"):
        assert connect(uri).search_experiments()
    engine = create_sqlalchemy_engine(uri)
    _upgrade_db(engine)
    engine.dispose()
    assert connect(uri).create_registered_model("desk").name == "desk"
    assert lease_holder(uri, "desk") is None


def test_reading_who_holds_the_lock_makes_no_database_and_a_server_has_none(uri, tmp_path) -> None:
    assert lease_holder(uri, "desk") is None
    assert not (tmp_path / "tracking").exists()
    assert lease_holder("http://127.0.0.1:9", "desk") is None
    with registry_lock(tmp_path, RegistryConfig(name="desk", tracking_uri="http://127.0.0.1:9")):
        assert (tmp_path / ".desk.holder.json").exists()
