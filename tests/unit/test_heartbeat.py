"""The heartbeat tells a missed, killed or failed run from one that ended in time, whatever its verdict."""

import json
import subprocess
import sys
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from sparsegate.cli import main
from sparsegate.config import NotifyConfig, RegistryConfig, RunConfig
from sparsegate.errors import DataError, ExitCode, LockedError, NothingToDoError, RegistryError
from sparsegate.workflow.heartbeat import beating, heartbeat_file, status
from sparsegate.workflow.lock import lock_holder, model_lock
from sparsegate.workflow.outcome import Outcome


@pytest.fixture
def config(tmp_path):
    runs = str(tmp_path / "runs")
    return RunConfig(registry=RegistryConfig(name="desk"), output_dir=runs, slot="monday")


def ended(code, tmp_path):
    return lambda: Outcome("as it ended", code, tmp_path, {})


def shift(config, **hours):
    """Move times in the file by some hours."""
    path = heartbeat_file(config_runs(config), "desk")
    beat = json.loads(path.read_text(encoding="utf-8"))
    for name, by in hours.items():
        beat[name] = (datetime.fromisoformat(beat[name]) + timedelta(hours=by)).isoformat()
    path.write_text(json.dumps(beat), encoding="utf-8")


def config_runs(config):
    return Path(config.output_dir)


def state(config, **options):
    found = status(config_runs(config), "desk", **options)
    return found.exit_code, found.message


@pytest.mark.parametrize("code", [ExitCode.PASSED, ExitCode.GATE_FAILED, ExitCode.NOT_ENOUGH_EVIDENCE])
def test_a_run_that_ended_with_a_verdict_is_in_time(config, tmp_path, code):
    beating(config, ended(code, tmp_path))
    assert state(config, max_age=timedelta(hours=26)) == (0, "desk: in time")
    found = status(config_runs(config), "desk")
    assert (found.heartbeat.exit_code, found.heartbeat.slot) == (code, "monday")
    assert f"exit {int(code)}: as it ended" in found.render()


def test_a_run_that_had_nothing_to_do_has_come(config):
    def nothing():
        raise NothingToDoError("nothing to do: complete")

    with pytest.raises(NothingToDoError):
        beating(config, nothing)
    assert state(config) == (0, "desk: in time")


def test_a_failed_run_is_told_with_its_reason_and_an_unexpected_one_without_its_text(config, tmp_path):
    def fail(error):
        raise error

    for error, why in ((RegistryError("the server is gone"), "the server is gone"), (OSError("secret"), "OSError")):
        with pytest.raises(type(error)):
            beating(config, lambda error=error: fail(error))
        code, message = state(config)
        assert (code, "secret" in message) == (10, False)
        assert message.startswith("desk: the last run failed: ")
        assert why in message


def test_a_missed_run_is_overdue_by_the_time_given_or_configured(config, tmp_path):
    beating(replace(config, notify=NotifyConfig(expect_every_hours=26)), ended(ExitCode.PASSED, tmp_path))
    shift(config, last_start=-25, next_expected=-25)
    assert state(config)[0] == 0
    code, message = state(config, max_age=timedelta(hours=24))
    assert code == 10
    assert "a run is overdue: none has started since" in message
    shift(config, next_expected=-2)
    assert state(config)[0] == 10


def test_a_run_at_work_is_told_from_one_that_was_killed(config, tmp_path):
    beating(config, ended(ExitCode.PASSED, tmp_path))

    def look():
        with model_lock(config_runs(config), "desk"):
            seen.append(state(config))
        seen.append(state(config))
        raise KeyboardInterrupt  # like a kill, it leaves no record

    seen = []
    with pytest.raises(KeyboardInterrupt):
        beating(config, look)
    assert seen[0] == (0, "desk: at work")
    assert seen[1][0] == 10
    assert "was killed" in seen[1][1]
    before = status(config_runs(config), "desk").heartbeat
    assert (before.ended, before.result) == (False, "as it ended"), "the run before is still known"


def test_a_clock_that_was_moved_is_no_proof_of_a_run(config, tmp_path):
    beating(config, ended(ExitCode.PASSED, tmp_path))
    shift(config, last_start=1)
    assert state(config, max_age=timedelta(hours=26)) == (
        10,
        "desk: the last start lies in the future; the clock was moved",
    )


def test_no_run_at_all_is_not_fresh_and_a_damaged_file_is_written_anew(config, tmp_path):
    code, message = state(config)
    assert (code, "no run ever started" in message) == (11, True)
    beating(config, ended(ExitCode.PASSED, tmp_path))
    heartbeat_file(config_runs(config), "desk").write_text("{}", encoding="utf-8")
    with pytest.raises(DataError, match="is not a heartbeat"):
        state(config)
    beating(config, ended(ExitCode.PASSED, tmp_path))
    assert state(config)[0] == 0


def test_the_command_answers_in_exit_code_text_and_json(config, tmp_path, capsys):
    beating(config, ended(ExitCode.PASSED, tmp_path))
    there = ("--output_dir", config.output_dir)
    assert main(["status", "desk", *there, "--max_age", "26h"]) == 0
    assert capsys.readouterr().out.endswith("\n\ndesk: in time\n")
    shift(config, last_start=-30)
    assert main(["status", "desk", *there, "--max_age", "1d", "--json"]) == 10
    assert json.loads(capsys.readouterr().out)["exit_code"] == 10
    assert main(["status", "desk", *there, "--max_age", "26"]) == 2
    assert "--max_age must be a number above 0 with m, h or d" in capsys.readouterr().err


def test_the_holder_of_a_lock_is_named_and_a_dead_one_holds_nothing(tmp_path):
    assert lock_holder(tmp_path, "desk") is None
    with model_lock(tmp_path, "desk"):
        assert "process" in lock_holder(tmp_path, "desk")
        with (
            pytest.raises(LockedError, match=r"is at work in .* \(process \d+ on \S+ since 20"),
            model_lock(tmp_path, "desk"),
        ):
            pass
        assert lock_holder(tmp_path, "desk") is not None, "who came second has not taken the record away"
    assert lock_holder(tmp_path, "desk") is None
    killed = "import os, pathlib, sys; from sparsegate.workflow.lock import model_lock\n"
    killed += "with model_lock(pathlib.Path(sys.argv[1]), 'desk'): os._exit(9)"
    subprocess.run([sys.executable, "-c", killed, str(tmp_path)], check=False)
    assert (tmp_path / ".desk.holder.json").exists()
    assert lock_holder(tmp_path, "desk") is None
