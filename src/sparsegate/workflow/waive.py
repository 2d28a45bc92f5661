"""Waivers of a run: who made it, what a waiver is for, and how one is given."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from sparsegate.contracts import GateResult, Waiver
from sparsegate.errors import UsageError, did_you_mean
from sparsegate.files import sha256_file
from sparsegate.signing import load_private_key
from sparsegate_gates.runner import planned_gates
from sparsegate_gates.waivers import WaiverRules, apply_waivers, result_digest, write_waiver

if TYPE_CHECKING:
    from sparsegate.workflow.run import Run


def with_waivers(run: Run, results: Sequence[GateResult]) -> tuple[GateResult, ...]:
    """Return results with the run's waivers that hold today."""
    return apply_waivers(results, _folder(run), _rules(run))


def waive(folder: Path, *, gate: str, approver: str, reason: str, expires: str, key: Path) -> str:
    """Sign a waiver for one gate of a judged run, and open the run again.

    Args:
        folder: The run's folder.
        gate: The gate that did not pass.
        approver: Name under which the policy lists the key.
        reason: Why the failure is accepted.
        expires: Last day on which the waiver holds, such as ``2026-12-31``.
        key: PEM file with the approver's Ed25519 private key.

    Returns:
        What was done and what to do next.

    Raises:
        UsageError: If there is nothing to waive, or the waiver could not hold.
    """
    from sparsegate.workflow.judging import read_report
    from sparsegate.workflow.run import reopen_run

    run = reopen_run(folder)
    if not (run.report_dir / "report.json").is_file():
        raise UsageError(f"{folder} was not judged yet; run 'sparsegate gate {folder}' first")
    found = {result.gate: result for result in read_report(run).results}
    if gate not in found:
        raise UsageError(f"unknown gate '{gate}'{did_you_mean(gate, found)}")
    rules = _rules(run)
    waiver = Waiver(
        gate=gate,
        subject_sha256=rules.subject(found[gate]) or "",
        policy_sha256=run.policy.sha256,
        author=run.manifest.author,
        approver=approver,
        reason=reason,
        expires=expires,
    )
    path = write_waiver(_folder(run), waiver, found[gate], key=load_private_key(key), rules=rules)
    # the run is no longer at its end: the same command goes on from here
    (run.folder / "outcome.json").unlink(missing_ok=True)
    left = [result.gate for result in read_report(run).results if not result.verdict.releases]
    then = f"'sparsegate register {folder}' registers it"
    if left:
        then = f"still to pass: {', '.join(left)}; give the run's command again"
    return f"waived: {gate} until {expires}, signed by {approver} in {path}; {then}"


def _folder(run: Run) -> Path:
    return run.folder / "waivers" / run.policy.name


def _rules(run: Run) -> WaiverRules:
    of_data = planned_gates(run.policy, "data")

    def subject(result: GateResult) -> str | None:
        if result.gate in of_data:
            return result_digest(result, run.manifest.run_key)
        return result_digest(result, run.manifest.run_key, sha256_file(run.delta)) if run.delta.is_file() else None

    return WaiverRules(run.policy, run.manifest.author, subject, datetime.now(UTC).date())
