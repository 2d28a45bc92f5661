"""What the gates say of a run: they are asked, their results are kept, and put into one report."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from sparsegate.contracts import JSON, GateResult
from sparsegate.files import read_json, write_json
from sparsegate.reports.model import GateReport
from sparsegate.reports.write import write_all
from sparsegate.workflow.evaluate import generation_settings
from sparsegate.workflow.run import Run
from sparsegate.workflow.waive import with_waivers
from sparsegate_gates.runner import planned_gates, run_gates

_GATE_TIMEOUT_S = 900.0
_Part = Literal["data", "answers", "model"]
_EARLY_GATES = ("integrity", "accuracy")  # what they ask for is there once candidate and base have answered


def gate_data(run: Run) -> list[Path]:
    """Judge the data before anything is trained."""
    return _gate(run, "data", {})


def gate_answers(run: Run) -> list[Path]:
    """Judge the candidate by what it and the base answered, before more is evaluated."""
    _results_path(run, "model").unlink(missing_ok=True)
    return _gate(run, "answers", {}, only=_EARLY_GATES)


def gate_model(run: Run, *, first: bool, early: bool = False) -> list[Path]:
    """Judge the candidate.

    Args:
        run: The run.
        first: The candidate is held against the base alone, and that is right.
        early: Take the word of the gates that were asked early, and ask the others.
    """
    facts: dict[str, JSON] = {"first": first, "generation": generation_settings(run.config)}
    if run.config.registry.anchor is not None:
        facts["anchor"] = run.config.registry.anchor
    if run.given is not None:
        facts["candidate"] = run.given.to_json()
    return _gate(run, "model", facts, known=_found(run, "answers") if early else ())


def _gate(
    run: Run,
    part: _Part,
    facts: Mapping[str, Any],
    *,
    only: Collection[str] | None = None,
    known: Sequence[GateResult] = (),
) -> list[Path]:
    results = run_gates(
        run.policy,
        stage="data" if part == "data" else "model",
        artifacts=run.artifacts(),
        output_dir=run.gates_dir,
        task=run.config.data.task,
        facts={**facts, "mix_ids": sorted(run.inputs.mix_ids)},
        timeout_s=_GATE_TIMEOUT_S,
        only=only,
        known=known,
    )
    path = _results_path(run, part)
    write_json(path, [result.to_json() for result in results])
    return [path]


def go_on(run: Run, part: _Part) -> bool:
    """Say whether the gates of a part let the run go on; where a policy asks none of them, they do."""
    return all(result.verdict.releases for result in _results(run, part))


def _results_path(run: Run, part: _Part) -> Path:
    return run.gates_dir / f"{part}.json"


def _results(run: Run, part: _Part) -> list[GateResult]:
    """Return what the gates of a part found, with the waivers that hold today."""
    return list(with_waivers(run, _found(run, part)))


def _found(run: Run, part: _Part) -> list[GateResult]:
    path = _results_path(run, part)
    return [GateResult.from_json(result) for result in read_json(path)] if path.exists() else []


def write_report(run: Run) -> GateReport:
    """Put the results of all gates into one report, in every format; gates that were not reached are INSUFFICIENT."""
    parts: tuple[_Part, ...] = ("data", "answers", "model")
    found = {result.gate: result for part in parts for result in _results(run, part)}
    planned = (*planned_gates(run.policy, "data"), *planned_gates(run.policy, "model"))
    before = "others have refused before" if go_on(run, "data") else "the data did not pass"
    of = f", {run.given.source}" if run.given else ""
    report = GateReport(
        subject=f"{run.config.registry.name} run {run.manifest.run_key[:16]}{of}",
        policy_name=run.policy.name,
        policy_sha256=run.policy.sha256,
        planned=planned,
        results=tuple(found.get(name) or GateResult.not_run(name, before) for name in planned),
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    write_all(report, run.report_dir)
    return report


def read_report(run: Run) -> GateReport:
    """Read the run's report back; its verdict is derived again, and its waivers are looked up as of today."""
    written = GateReport.from_json(read_json(run.report_dir / "report.json"))
    report = replace(written, results=with_waivers(run, written.results))
    if report != written:
        write_all(report, run.report_dir)
    return report
