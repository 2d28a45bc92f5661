"""The report as SARIF 2.1.0: one rule for each gate, one result for each of its questions that was not answered PASS.

Source: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html
"""

from __future__ import annotations

from urllib.parse import quote

from sparsegate import __version__
from sparsegate.contracts import JSON, Check, GateResult, Verdict
from sparsegate.errors import ExitCode
from sparsegate.files import sha256_bytes
from sparsegate.reports.model import GateReport
from sparsegate.reports.wording import NEXT_STEP, measured, needed

_SCHEMA = "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"
_PLAN_RULE = "planned_gates"
_LOCATION = "report.json"  # code scanning shows no result that points to no file


def to_sarif(report: GateReport) -> dict[str, JSON]:
    """Return the SARIF log."""
    texts = {result.gate: result.method or result.gate for result in report.results}
    results = [_result(result, check) for result in report.results for check in _open_checks(result)]
    if report.problems:
        texts[_PLAN_RULE] = "Each planned gate answers once, and no other does."
        results += [_finding(_PLAN_RULE, problem, Verdict.ERROR, problem) for problem in report.problems]
    order = list(texts)
    for found in results:
        found["ruleIndex"] = order.index(found["ruleId"])
    rules = [
        {"id": gate, "shortDescription": {"text": text}, "defaultConfiguration": {"level": "error"}}
        for gate, text in texts.items()
    ]
    exit_code = report.verdict.exit_code
    run = {
        "tool": {"driver": {"name": "sparsegate", "semanticVersion": __version__, "rules": rules}},
        "automationDetails": {"id": f"sparsegate/{quote(report.policy_name)}/{quote(report.subject)}"},
        "invocations": [{"executionSuccessful": report.verdict is not Verdict.ERROR, "exitCode": int(exit_code)}],
        "results": results,
        "properties": {
            "subject": report.subject,
            "verdict": str(report.verdict),
            "nextStep": NEXT_STEP[report.verdict],
            "policySha256": report.policy_sha256,
            "createdAt": report.created_at,
        },
    }
    return {"$schema": _SCHEMA, "version": "2.1.0", "runs": [run]}


def _open_checks(result: GateResult) -> list[Check]:
    """Return the checks that were not answered PASS; a gate that asked nothing stands for itself."""
    if not result.checks:
        return [Check(name="gate", verdict=Verdict.ERROR, reason=result.reason)]
    return [check for check in result.checks if check.verdict is not Verdict.PASS]


def _result(result: GateResult, check: Check) -> dict[str, JSON]:
    reason = check.reason if check.name == "gate" else f"{check.name}: {check.reason}"
    text = f"{reason} (measured {measured(check)}, needed {needed(check)}, n {check.n})"
    built = _finding(result.gate, check.name, check.verdict, text)
    built["properties"] |= {"n": check.n, "unscorable": check.unscorable, "items": list(check.items)}
    if result.verdict.exit_code is ExitCode.PASSED:  # the gate lets the model through all the same, and says why
        built["suppressions"] = [{"kind": "external", "status": "accepted", "justification": result.reason}]
    return built


def _finding(rule: str, question: str, verdict: Verdict, text: str) -> dict[str, JSON]:
    """Build a result. Its fingerprint leaves out what changes from run to run, so that an alert is followed over runs.

    Everything but PASS blocks a release, so its level is ``error``; the verdict stands in the properties.
    """
    name = f"{rule}/{question}"
    return {
        "ruleId": rule,
        "kind": "fail",
        "level": "error",
        "message": {"text": f"{verdict} {text}"},
        "locations": [
            {
                "physicalLocation": {"artifactLocation": {"uri": _LOCATION}, "region": {"startLine": 1}},
                "logicalLocations": [{"fullyQualifiedName": name}],
            }
        ],
        # the name under which code scanning looks for it
        "partialFingerprints": {"primaryLocationLineHash": f"{sha256_bytes(name.encode())[:16]}:1"},
        "properties": {"verdict": str(verdict)},
    }
