"""SARIF 2.1.0. The schema below is the part of OASIS's that the report uses, closed to everything else."""

import json

import jsonschema
import pytest

from sparsegate.contracts import Check, GateResult, Interval, Verdict
from sparsegate.reports.model import GateReport
from sparsegate.reports.sarif import to_sarif

TEXT = {"type": "string", "minLength": 1}
MESSAGE = {"type": "object", "properties": {"text": TEXT}, "required": ["text"], "additionalProperties": False}
COUNT = {"type": "integer", "minimum": 0}


def closed(required, **properties):
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def listing(items, least=0):
    return {"type": "array", "items": items, "minItems": least, "uniqueItems": True}


LOCATION = closed(
    ["physicalLocation"],
    physicalLocation=closed(
        ["artifactLocation"],
        artifactLocation=closed(["uri"], uri={"type": "string", "format": "uri-reference"}),
        region=closed(["startLine"], startLine={"type": "integer", "minimum": 1}),
    ),
    logicalLocations=listing(closed(["fullyQualifiedName"], fullyQualifiedName=TEXT), 1),
)
RESULT = closed(
    ["message", "ruleId", "ruleIndex", "level", "kind", "locations", "partialFingerprints"],
    ruleId=TEXT,
    ruleIndex=COUNT,
    kind={"const": "fail"},  # any other kind asks for the level "none"
    level={"enum": ["none", "note", "warning", "error"]},
    message=MESSAGE,
    locations=listing(LOCATION, 1),
    partialFingerprints={"type": "object", "additionalProperties": TEXT, "minProperties": 1},
    suppressions=listing(
        closed(
            ["kind"],
            kind={"enum": ["inSource", "external"]},
            status={"enum": ["accepted", "underReview", "rejected"]},
            justification=TEXT,
        )
    ),
    properties={"type": "object"},
)
RULE = closed(
    ["id"],
    id=TEXT,
    shortDescription=MESSAGE,
    defaultConfiguration=closed([], level={"enum": ["none", "note", "warning", "error"]}),
)
RUN = closed(
    ["tool", "results"],
    tool=closed(["driver"], driver=closed(["name"], name=TEXT, semanticVersion=TEXT, rules=listing(RULE))),
    automationDetails=closed(["id"], id=TEXT),
    invocations=listing(
        closed(["executionSuccessful"], executionSuccessful={"type": "boolean"}, exitCode={"type": "integer"})
    ),
    results={"type": "array", "items": RESULT},
    properties={"type": "object"},
)
SCHEMA = closed(
    ["$schema", "version", "runs"],
    **{
        "$schema": {"const": "https://docs.oasis-open.org/sarif/sarif/v2.1.0/os/schemas/sarif-schema-2.1.0.json"},
        "version": {"const": "2.1.0"},
        "runs": listing(RUN, 1),
    },
)

PASSED = GateResult("integrity", (Check.at_least("entries changed", 4, 1, n=4),), method="old values compared")
FAILED = GateResult(
    "regression",
    (
        Check.at_least(
            "candidate - champion",
            -0.05,
            -0.03,
            n=480,
            interval=Interval(-0.075, -0.025, 0.95, "tango"),
            items=("e-7", "e-311"),
        ),
        Check.at_least("channel=chat", 0.1, -0.1, n=90),
    ),
)
UNJUDGED = GateResult.single("harmful_output", Verdict.INSUFFICIENT, "no canaries to judge from")
BROKEN = GateResult.single("cost", Verdict.ERROR, "the gate ended with signal 9")


def report(*results, planned=None, subject="run 1a2b"):
    names = tuple(result.gate for result in results) if planned is None else planned
    return GateReport(subject, "standard", "9" * 64, names, results, "2026-11-24T12:00:00+00:00")


def results_of(log):
    return {(found["ruleId"], found["properties"]["verdict"]): found for found in log["runs"][0]["results"]}


@pytest.mark.parametrize(
    "given",
    [
        report(PASSED),
        report(PASSED, FAILED, UNJUDGED, BROKEN),
        report(PASSED, planned=("integrity", "cost")),
        report(FAILED, FAILED, planned=("regression",)),
        report(GateResult("cost", ())),
        report(),
    ],
    ids=["passed", "all verdicts", "unanswered", "doubled", "asked nothing", "nothing planned"],
)
def test_the_log_follows_the_schema(given):
    log = json.loads(json.dumps(to_sarif(given), allow_nan=False))
    jsonschema.Draft202012Validator(SCHEMA).validate(log)
    run = log["runs"][0]
    rules = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(set(rules)) == len(rules)
    assert [rules[found["ruleIndex"]] for found in run["results"]] == [found["ruleId"] for found in run["results"]]
    assert run["invocations"][0]["exitCode"] == given.verdict.exit_code
    assert bool(run["results"]) is (given.verdict is not Verdict.PASS)


def test_every_question_that_was_not_answered_pass_is_an_error_that_says_why():
    found = results_of(to_sarif(report(PASSED, FAILED, UNJUDGED, BROKEN)))
    assert set(found) == {("regression", "FAIL"), ("harmful_output", "INSUFFICIENT"), ("cost", "ERROR")}
    assert {result["level"] for result in found.values()} == {"error"}
    failed = found["regression", "FAIL"]
    assert failed["message"]["text"] == (
        "FAIL candidate - champion: -0.075 is not at least -0.03"
        " (measured -0.05 [-0.075, -0.025], needed low end >= -0.03, n 480)"
    )
    assert failed["properties"]["items"] == ["e-7", "e-311"]


def test_a_gate_that_did_not_answer_is_an_error():
    log = to_sarif(report(PASSED, planned=("integrity", "cost")))
    assert [found["message"]["text"] for found in log["runs"][0]["results"]] == [
        "ERROR gate 'cost' was planned and did not answer"
    ]
    assert log["runs"][0]["invocations"][0]["executionSuccessful"] is False


def test_a_fingerprint_is_the_same_in_the_next_run_and_differs_between_questions():
    def fingerprints(log):
        return [found["partialFingerprints"]["primaryLocationLineHash"] for found in log["runs"][0]["results"]]

    first = fingerprints(to_sarif(report(FAILED, UNJUDGED, BROKEN)))
    second = fingerprints(to_sarif(report(FAILED, UNJUDGED, BROKEN, subject="run 3c4d")))
    assert first == second
    assert len(set(first)) == 3


def test_a_failed_question_of_a_gate_that_lets_the_model_through_is_suppressed_with_its_reason():
    class LetThrough(GateResult):
        @property
        def verdict(self):
            return Verdict.PASS

    log = to_sarif(report(LetThrough(FAILED.gate, FAILED.checks)))
    assert [found["suppressions"][0]["kind"] for found in log["runs"][0]["results"]] == ["external"]
    assert "suppressions" not in results_of(to_sarif(report(FAILED)))["regression", "FAIL"]
