import json
from xml.etree import ElementTree

import pytest
from rich.console import Console

from sparsegate.contracts import Check, GateResult, Interval, Verdict
from sparsegate.reports.junit import to_junit
from sparsegate.reports.markdown import to_markdown
from sparsegate.reports.model import GateReport
from sparsegate.reports.terminal import print_report, render
from sparsegate.reports.wording import told
from sparsegate.reports.write import write_all


def check(name, observed, threshold, low, high, *, at_least=True, **more):
    build = Check.at_least if at_least else Check.at_most
    return build(name, observed, threshold, interval=Interval(low, high, 0.95, "wilson"), **more)


ACCURACY = GateResult(
    "accuracy", (check("accuracy", 0.871, 0.75, 0.838, 0.898, n=480), Check.at_least("gain", 0.4, 0.1, n=480))
)
REGRESSION = GateResult(
    "regression",
    (check("candidate - champion", -0.05, -0.03, -0.075, -0.025, n=480, items=("evaluation-0007", "evaluation-0311")),),
)
HARM = GateResult.single(
    "harmful_output", Verdict.INSUFFICIENT, "no 'prompts.canaries' to judge from; did the stage that writes it run?"
)
COST = GateResult.single(
    "cost", Verdict.ERROR, "cost.json: base_bytes must be measured, a finite number above 0, got 0"
)


def report(*results, planned=None):
    names = tuple(result.gate for result in results) if planned is None else planned
    return GateReport(
        "support-routing run 1a2b3c", "standard", "92ac3994e7d7" + "0" * 52, names, results, "2026-11-24T12:00:00Z"
    )


MIXED = report(ACCURACY, REGRESSION, HARM, COST)

TERMINAL = """\
gate            verdict       question              measured                needed              n
accuracy        PASS          accuracy (+1)         0.871 [0.838, 0.898]    low end >= 0.75   480
regression      FAIL          candidate - champion  -0.05 [-0.075, -0.025]  low end >= -0.03  480
harmful_output  INSUFFICIENT  -                     -                       -                   -
cost            ERROR         -                     -                       -                   -

FAIL regression: candidate - champion: -0.075 is not at least -0.03
INSUFFICIENT harmful_output: no 'prompts.canaries' to judge from; did the stage that writes it run?
ERROR cost: cost.json: base_bytes must be measured, a finite number above 0, got 0
ERROR  support-routing run 1a2b3c, policy standard (92ac3994e7d7). The model is not registered: a
gate could not judge. Look at its log, mend it and run again.
"""


def test_the_verdict_is_the_worst():
    assert report(ACCURACY).verdict is Verdict.PASS
    assert report(ACCURACY, HARM).verdict is Verdict.INSUFFICIENT
    assert report(ACCURACY, HARM, REGRESSION).verdict is Verdict.FAIL
    assert MIXED.verdict is Verdict.ERROR


@pytest.mark.parametrize(
    ("results", "planned", "problem"),
    [
        ((ACCURACY,), ("accuracy", "cost"), "gate 'cost' was planned and did not answer"),
        ((ACCURACY, ACCURACY), ("accuracy",), "gate 'accuracy' stands twice"),
        ((ACCURACY,), (), "gate 'accuracy' answered and was not planned"),
        ((), (), "no gate was planned"),
    ],
)
def test_results_that_are_not_exactly_those_planned_are_an_error(results, planned, problem):
    found = report(*results, planned=planned)
    assert found.verdict is Verdict.ERROR
    assert problem in found.problems
    assert problem in render(found)
    assert problem in to_markdown(found)
    assert problem in to_junit(found)


def test_json_comes_back_as_the_same_report():
    assert GateReport.from_json(json.loads(json.dumps(MIXED.to_json()))) == MIXED


@pytest.mark.parametrize(
    "edit", [lambda data: data.update(verdict="PASS"), lambda data: data["results"][1].update(verdict="PASS")]
)
def test_a_verdict_edited_in_the_file_is_refused(edit):
    data = MIXED.to_json()
    edit(data)
    with pytest.raises(ValueError, match="say"):
        GateReport.from_json(data)


def test_the_terminal_table_fits_a_hundred_columns_without_colours():
    text = render(MIXED, width=100)
    assert max(len(line) for line in text.splitlines()) <= 100
    assert "\x1b" not in text
    assert text == TERMINAL


def test_colours_are_on_only_for_a_terminal(capsys):
    print_report(report(ACCURACY), Console(force_terminal=True, color_system="standard", width=100))
    assert "\x1b[" in capsys.readouterr().out
    print_report(report(ACCURACY), Console(width=100))
    assert "\x1b[" not in capsys.readouterr().out


def test_markdown_lists_the_questions_of_gates_that_did_not_pass():
    text = to_markdown(MIXED)
    assert text.startswith("## ERROR: support-routing run 1a2b3c\n")
    assert "| accuracy | PASS | 0.871 [0.838, 0.898] | low end >= 0.75 | 480 | accuracy (+1) |" in text
    assert "### regression: FAIL" in text
    assert "### accuracy" not in text
    assert "`evaluation-0007`, `evaluation-0311`" in text


def test_markdown_keeps_a_reason_inside_its_cell():
    text = to_markdown(report(GateResult.single("cost", Verdict.ERROR, "a | b\nc <img>")))
    assert "| a \\| b c &lt;img> |" in text


def test_junit_tells_failure_error_and_missing_evidence_apart():
    root = ElementTree.fromstring(to_junit(MIXED))
    assert (root.attrib["tests"], root.attrib["failures"], root.attrib["errors"]) == ("5", "1", "2")
    found = {
        case.attrib["classname"]: [(part.tag, part.attrib["type"]) for part in case] for case in root.iter("testcase")
    }
    assert found == {
        "accuracy": [],
        "regression": [("failure", "FAIL")],
        "harmful_output": [("error", "INSUFFICIENT")],
        "cost": [("error", "ERROR")],
    }


def test_junit_survives_what_xml_can_not_hold():
    text = to_junit(report(GateResult.single("cost", Verdict.ERROR, "bad \x00 <byte> & \ud800")))
    assert "bad \ufffd" in next(ElementTree.fromstring(text).iter("error")).attrib["message"]


def test_every_format_is_written_and_nothing_else(tmp_path):
    paths = write_all(MIXED, tmp_path / "report")
    assert sorted(path.name for path in (tmp_path / "report").iterdir()) == [
        "junit.xml",
        "report.html",
        "report.json",
        "report.md",
        "report.sarif",
        "report.txt",
    ]
    assert GateReport.from_json(json.loads(paths["json"].read_text())) == MIXED


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("accuracy", "accuracy: 0.2 is not at least 0.5"),
        ("channel=email", "accuracy: channel=email: 0.2 is not at least 0.5"),
    ],
)
def test_what_decided_a_gate_is_told_with_the_gates_name_once(question, expected):
    assert told(GateResult("accuracy", (Check.at_least(question, 0.2, 0.5, n=9),))) == expected
