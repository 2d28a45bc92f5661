"""Runs the gates of a policy, each in its own process with a time limit; whatever goes wrong ends as ERROR."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Literal

from sparsegate.contracts import JSON, Gate, GateContext, GateResult, Task, Verdict
from sparsegate_gates import all_gates
from sparsegate_gates.policy import Policy

_log = logging.getLogger(__name__)


def planned_gates(
    policy: Policy, stage: Literal["data", "model"], *, gates: Mapping[str, type[Gate]] | None = None
) -> tuple[str, ...]:
    """Return the names of the gates that a policy asks at a stage, in the order in which they run."""
    known = all_gates() if gates is None else gates
    return tuple(name for name in policy.gates if known[name].stage == stage)


def run_gates(
    policy: Policy,
    *,
    stage: Literal["data", "model"],
    artifacts: Mapping[str, Path],
    output_dir: Path,
    task: Task,
    facts: Mapping[str, JSON],
    timeout_s: float,
    gates: Mapping[str, type[Gate]] | None = None,
    only: Collection[str] | None = None,
    known: Sequence[GateResult] = (),
) -> list[GateResult]:
    """Run the gates that a policy asks at a stage.

    Args:
        policy: The policy.
        stage: ``data`` (before training) or ``model``.
        artifacts: Name to file or folder, as in :class:`~sparsegate.contracts.GateContext`.
        output_dir: Each gate gets a folder of its name here, with ``result.json`` and ``log.txt``.
        task: What the model is trained for.
        facts: Further plain facts.
        timeout_s: Seconds that one gate may take.
        gates: Known gates; None takes the built-in ones and those of installed packages.
        only: Run none but these; None runs all.
        known: Results of gates that were asked before and are not asked again.

    Returns:
        One result for each planned gate (that is in ``only``), in order.
    """
    installed = all_gates() if gates is None else gates
    before = {result.gate: result for result in known}
    results: list[GateResult] = []
    for name in planned_gates(policy, stage, gates=installed):
        if only is not None and name not in only:
            continue
        if name in before:
            results.append(before[name])
            continue
        folder = output_dir / name
        folder.mkdir(parents=True, exist_ok=True)
        context = GateContext(
            settings=policy.gates[name], artifacts=dict(artifacts), output_dir=folder, task=task, facts=dict(facts)
        )
        _log.info("gate %s runs", name)
        result = _run_apart(name, installed[name], context, timeout_s)
        _log.info("gate %s: %s", name, result.verdict)
        results.append(result)
    return results


def _run_apart(name: str, gate: type[Gate], context: GateContext, timeout_s: float) -> GateResult:
    """Run one gate in a process of its own and read the result it leaves."""
    started = time.perf_counter()

    def failed(reason: str) -> GateResult:
        return GateResult.single(name, Verdict.ERROR, reason, seconds=time.perf_counter() - started)

    path = context.output_dir / "result.json"
    path.unlink(missing_ok=True)
    try:
        job = pickle.dumps((name, gate, context, str(path)))
    except Exception as error:
        return failed(f"the gate can't be sent to its process: {error}")
    log_path = context.output_dir / "log.txt"
    code = _run_worker(job, log_path, timeout_s)
    if code is None:
        return failed(f"took longer than {timeout_s:g} s and was stopped; see {log_path}")
    if code < 0:
        return failed(f"its process was killed by {_signal_name(-code)}, perhaps for memory; see {log_path}")
    if code > 0 or not path.is_file():
        return failed(f"its process ended with code {code} and no result; see {log_path}")
    try:
        result = GateResult.from_json(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError, KeyError) as error:
        return failed(f"its result can't be read: {error}")
    if result.waiver is not None:
        return failed("a gate can't waive itself")
    return result if result.gate == name else failed(f"its process answered for '{result.gate}'")


def _run_worker(job: bytes, log_path: Path, timeout_s: float) -> int | None:
    """Run the worker; return its exit code (negative: a signal), or None if it ran out of time."""
    # a fresh interpreter and not multiprocessing, which would run an unguarded main script again
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry)}
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "sparsegate_gates.worker"],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
        )
        try:
            process.communicate(job, timeout=timeout_s)
        except subprocess.TimeoutExpired:
            return None
        finally:
            _end_group(process)
    return process.returncode


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End the gate's process and everything it started."""
    with contextlib.suppress(ProcessLookupError):  # nothing is left to end
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
