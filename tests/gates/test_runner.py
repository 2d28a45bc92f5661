import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from sparsegate.contracts import GateResult, Verdict
from sparsegate_gates.policy import Policy, load_policy
from sparsegate_gates.runner import planned_gates, run_gates


@pytest.fixture
def faulty(monkeypatch):
    """The module of faulty gates, importable in the gates' own processes too."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    import faulty_gates

    return faulty_gates


def run(tmp_path, *gates, timeout_s=60.0, facts=None, **which):
    policy = Policy("test", "0" * 64, {gate.name: gate.settings() for gate in gates})
    return run_gates(
        policy,
        stage="model",
        artifacts={},
        output_dir=tmp_path,
        task="classification",
        facts=facts or {},
        timeout_s=timeout_s,
        gates={gate.name: gate for gate in gates},
        **which,
    )


def test_a_gate_runs_in_its_own_process_and_its_words_stay_off_standard_output(faulty, tmp_path, capfd):
    (result,) = run(tmp_path, faulty.Good, facts={"note": "hello"})
    assert result.verdict is Verdict.PASS
    assert result.details["pid"] != os.getpid()
    assert result.details["note"] == "hello"
    assert result.seconds > 0
    assert capfd.readouterr().out == ""
    assert "words on standard output" in (tmp_path / "good" / "log.txt").read_text()
    assert json.loads((tmp_path / "good" / "result.json").read_text())["verdict"] == "PASS"


def test_a_gate_that_was_asked_before_is_not_asked_again(faulty, tmp_path):
    assert run(tmp_path, faulty.Good, faulty.Raises, only=("other",)) == []
    known = run(tmp_path, faulty.Good, faulty.Raises, only=("good",))
    assert [result.gate for result in known] == ["good"]
    assert run(tmp_path, faulty.Good, faulty.Raises, known=known)[0] == known[0]
    again = run(tmp_path, faulty.Good, faulty.Raises, known=[GateResult.single("raises", Verdict.FAIL, "before")])
    assert [(result.gate, result.verdict) for result in again] == [("good", Verdict.PASS), ("raises", Verdict.FAIL)]


@pytest.mark.parametrize(
    ("name", "verdict", "reason"),
    [
        ("Raises", "ERROR", "RuntimeError: it broke in two lines"),
        ("Lacks", "INSUFFICIENT", "no 'predictions.candidate' to judge from; did the stage that writes it run?"),
        ("LacksPart", "INSUFFICIENT", "no lines"),
        ("WrongType", "ERROR", "the gate returned bool, not a GateResult"),
        ("WrongName", "ERROR", "the gate answered for 'good'"),
        ("NoChecks", "ERROR", "the gate asked nothing"),
        ("NotJson", "ERROR", "can't be written as JSON"),
        ("Killed", "ERROR", "killed by SIGKILL"),
        ("Exits", "ERROR", "ended with code 0 and no result"),
        ("ExitsBySystemExit", "ERROR", "ended with code 0 and no result"),
    ],
)
def test_whatever_goes_wrong_never_passes(faulty, tmp_path, name, verdict, reason):
    (result,) = run(tmp_path, getattr(faulty, name))
    assert result.verdict == verdict
    assert reason in result.reason
    assert "\n" not in result.reason


def test_a_gate_that_hangs_is_stopped_with_everything_it_started(faulty, tmp_path):
    (result,) = run(tmp_path, faulty.Hangs, timeout_s=8.0)
    assert result.verdict is Verdict.ERROR
    assert "took longer than 8 s" in result.reason
    child = int((tmp_path / "hangs" / "child.pid").read_text())
    for _ in range(100):
        if not _is_running(child):
            break
        time.sleep(0.05)
    assert not _is_running(child)


def _is_running(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_a_gate_that_can_not_be_pickled_is_an_error(tmp_path, faulty):
    class Local(faulty.Good):
        name = "local"

    (result,) = run(tmp_path, Local)
    assert result.verdict is Verdict.ERROR
    assert "can't be sent to its process" in result.reason


def test_an_old_result_is_never_taken_for_a_new_one(faulty, tmp_path):
    run(tmp_path, faulty.Good)
    kept = (tmp_path / "good" / "result.json").read_text().replace("good", "killed")
    (tmp_path / "killed").mkdir()
    (tmp_path / "killed" / "result.json").write_text(kept)
    (result,) = run(tmp_path, faulty.Killed)
    assert result.verdict is Verdict.ERROR


def test_one_bad_gate_does_not_keep_the_others_from_answering(faulty, tmp_path):
    results = run(tmp_path, faulty.Raises, faulty.Good)
    assert [(result.gate, result.verdict) for result in results] == [("raises", "ERROR"), ("good", "PASS")]


def test_only_the_gates_of_the_stage_run(faulty, tmp_path):
    assert run(tmp_path, faulty.OfData) == []
    policy = load_policy("standard")
    assert planned_gates(policy, "data") == ("data_quality",)
    assert len(planned_gates(policy, "model")) == 6


def test_every_shipped_gate_is_insufficient_without_files(tmp_path):
    policy = load_policy("standard")
    gates = {name: settings for name, settings in policy.gates.items() if name in ("accuracy", "cost")}
    results = run_gates(
        Policy("part", policy.sha256, gates),
        stage="model",
        artifacts={},
        output_dir=tmp_path,
        task="classification",
        facts={},
        timeout_s=120,
    )
    assert [result.verdict for result in results] == [Verdict.INSUFFICIENT, Verdict.INSUFFICIENT]


def test_a_script_without_a_main_guard_can_run_gates(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
import faulty_gates
from sparsegate_gates.policy import Policy
from sparsegate_gates.runner import run_gates
gate = faulty_gates.Good
policy = Policy("t", "0", {{"good": gate.settings()}})
print([str(r.verdict) for r in run_gates(policy, stage="model", artifacts={{}}, output_dir=Path({str(tmp_path)!r}),
      task="classification", facts={{}}, timeout_s=60, gates={{"good": gate}})])
"""
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, check=True, env=environment)
    assert done.stdout == "['PASS']\n"
