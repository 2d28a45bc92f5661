"""The report as JUnit XML: one suite for each gate, one case for each of its questions.

FAIL is a ``failure``. INSUFFICIENT and ERROR are ``error`` elements that differ in their ``type``, so that no reader
takes missing evidence for a skipped test; only what a signed waiver lets through is ``skipped``.
"""

from __future__ import annotations

import re
from xml.etree.ElementTree import Element, SubElement, indent, tostring

from sparsegate.contracts import Check, GateResult, Verdict
from sparsegate.reports.model import GateReport
from sparsegate.reports.wording import measured, needed

# what XML 1.0 can't hold
_FORBIDDEN = re.compile("[^\t\n\r\u0020-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def to_junit(report: GateReport) -> str:
    """Return the XML text."""
    suites = [_suite(result, report.created_at) for result in report.results]
    if report.problems:
        suites.append(_plan_suite(report))
    totals = {name: str(sum(int(suite.attrib[name]) for suite in suites)) for name in ("tests", "failures", "errors")}
    root = Element("testsuites", {"name": _clean(f"sparsegate {report.subject}"), **totals})
    root.extend(suites)
    indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + tostring(root, encoding="unicode") + "\n"


def _suite(result: GateResult, created_at: str) -> Element:
    verdicts = [check.verdict for check in result.checks]
    if result.verdict is Verdict.WAIVED:
        verdicts = [verdict if verdict is Verdict.PASS else Verdict.WAIVED for verdict in verdicts]
    suite = Element("testsuite", _counts(result.gate, verdicts))
    suite.set("time", f"{result.seconds:.3f}")
    suite.set("timestamp", _clean(created_at))
    for check in result.checks:
        _add_case(suite, result, check)
    return suite


def _add_case(suite: Element, result: GateResult, check: Check) -> None:
    case = SubElement(suite, "testcase", {"classname": _clean(result.gate), "name": _clean(check.name)})
    if check.verdict is Verdict.PASS:
        return
    if result.verdict is Verdict.WAIVED:
        SubElement(case, "skipped", {"message": _clean(f"{Verdict.WAIVED}: {result.reason}")})
        return
    tag = "failure" if check.verdict is Verdict.FAIL else "error"
    found = SubElement(case, tag, {"type": str(check.verdict), "message": _clean(check.reason)})
    text = f"measured {measured(check)}, needed {needed(check)}, n {check.n}"
    found.text = _clean(text + (f"\nitems: {', '.join(check.items)}" if check.items else ""))


def _plan_suite(report: GateReport) -> Element:
    """Report gates that did not answer, or were not asked."""
    suite = Element("testsuite", _counts("planned gates", [Verdict.ERROR] * len(report.problems)))
    for problem in report.problems:
        case = SubElement(suite, "testcase", {"classname": "planned gates", "name": _clean(problem)})
        SubElement(case, "error", {"type": str(Verdict.ERROR), "message": _clean(problem)})
    return suite


def _counts(name: str, verdicts: list[Verdict]) -> dict[str, str]:
    errors = sum(verdict in (Verdict.ERROR, Verdict.INSUFFICIENT) for verdict in verdicts)
    counts = {
        "tests": len(verdicts),
        "failures": verdicts.count(Verdict.FAIL),
        "errors": errors,
        "skipped": verdicts.count(Verdict.WAIVED),
    }
    return {"name": _clean(name), **{kind: str(count) for kind, count in counts.items()}}


def _clean(text: str) -> str:
    return _FORBIDDEN.sub("\ufffd", text)
