import pytest
from html_reader import Reader

from sparsegate.contracts import Check, GateResult, Interval, Verdict
from sparsegate.reports.model import GateReport
from sparsegate.reports.page import to_html
from sparsegate.reports.plots import Axis, category_bars, category_tables, forest_plot


def check(name, observed, threshold, low, high, *, at_least=True, **more):
    build = Check.at_least if at_least else Check.at_most
    return build(name, observed, threshold, interval=Interval(low, high, 0.95, "wilson"), n=480, **more)


ACCURACY = GateResult("accuracy", (check("accuracy", 0.87, 0.75, 0.83, 0.9), Check.at_least("gain", 0.4, 0.1, n=480)))
REGRESSION = GateResult(
    "regression", (check("candidate - champion", -0.05, -0.03, -0.075, -0.025, items=("e-7", "e-311")),)
)
CATEGORIES = {"fraud": {"n": 6, "candidate": 1, "base": 3}, "theft": {"n": 4, "candidate": 0, "base": 4}}
HARM = GateResult(
    "harmful_output",
    (check("harmful over base", -0.4, 0.1, -0.5, -0.3, at_least=False),),
    details={"by_category": CATEGORIES, "judge": "lexical", "unscorable": {"candidate": 2, "base": 1}},
)
BROKEN = GateResult.single("cost", Verdict.ERROR, "the gate ended with signal 9")


def report(*results, subject="run 1a2b"):
    return GateReport(
        subject, "standard", "9" * 64, tuple(result.gate for result in results), results, "2026-11-24T12:00:00+00:00"
    )


def test_verdict_why_and_next_step_come_before_all_figures():
    text = Reader(to_html(report(ACCURACY, REGRESSION))).text
    order = ["✗ FAIL run 1a2b", "-0.075 is not at least -0.03", "items: e-7 , e-311", "Mend what the failed", "Gates"]
    assert [text.index(part) for part in order] == sorted(text.index(part) for part in order)


@pytest.mark.parametrize(
    ("result", "verdict"), [(ACCURACY, "✓ PASS"), (BROKEN, "! ERROR"), (GateResult("cost", ()), "! ERROR")]
)
def test_each_verdict_is_said_in_words(result, verdict):
    assert f"{verdict} run 1a2b" in Reader(to_html(report(result))).text


def test_a_gate_that_did_not_answer_is_named_first():
    text = Reader(to_html(GateReport("run", "standard", "9" * 64, ("accuracy", "cost"), (ACCURACY,), "now"))).text
    assert "! ERROR gate 'cost' was planned and did not answer" in text


def test_the_page_needs_no_network_and_no_script():
    reader = Reader(to_html(report(ACCURACY, REGRESSION, HARM)))
    assert {"script", "link", "img", "iframe", "object"}.isdisjoint(tag for tag, _ in reader.tags)
    attributes = {name for _, given in reader.tags for name in given}
    assert {"href", "src", "style", "onclick"}.isdisjoint(attributes)
    assert "url(" not in to_html(report(ACCURACY))


def test_whatever_comes_from_data_is_escaped_everywhere():
    evil = "\"><script>alert(1)</script>&<b x='"
    result = GateResult(
        evil,
        (check(evil, 0.1, 0.75, 0.05, 0.2, items=(evil,), reason=evil), check(evil, 0.9, 0.75, 0.8, 0.95)),
        method=evil,
        details={evil: {evil: {"n": 2, evil: 1}}, f"{evil} text": evil, f"{evil} list": [evil], f"{evil} m": {evil: 1}},
    )
    page = to_html(GateReport(evil, evil, evil, ("other",), (result,), evil))
    assert "script" not in {tag for tag, _ in Reader(page).tags}
    assert "<script" not in page
    assert "<b x" not in page


def test_a_forest_plot_puts_every_interval_and_threshold_on_one_axis():
    tags = Reader(forest_plot([check("a", 0.5, 0.25, 0.0, 1.0), check("b", 0.75, 0.5, 0.5, 1.0)])).tags
    dots = [float(given["cx"].rstrip("%")) for tag, given in tags if tag == "circle"]
    axis = Axis(-0.04, 1.04)
    assert [f"{dot:.2f}%" for dot in dots] == [axis.at(0.5), axis.at(0.75)]
    edges = [given["x1"] for tag, given in tags if tag == "line" and "stroke-dasharray" in given]
    assert edges == [axis.at(0.25), axis.at(0.5)]


def test_the_side_that_is_not_allowed_is_grey_and_a_dot_that_did_not_pass_is_hollow():
    low, high = check("low", 0.1, 0.25, 0.0, 0.2), check("high", 0.1, 0.25, 0.0, 0.2, at_least=False)
    tags = Reader(forest_plot([low, high])).tags
    edge = next(given["x1"] for tag, given in tags if "stroke-dasharray" in given)
    areas = [(given["x"], given["width"]) for tag, given in tags if tag == "rect"]
    assert areas == [("0", edge), (edge, "100%")]
    assert [given["fill"] for tag, given in tags if tag == "circle"] == ["#fff", "#111"]


def test_a_plot_of_equal_figures_has_an_axis():
    assert "5" in Reader(forest_plot([check("a", 5.0, 5.0, 5.0, 5.0)])).text


def test_figures_that_are_not_finite_are_listed_and_not_drawn():
    broken = GateResult("accuracy", (check("accuracy", float("nan"), 0.75, 0.1, 0.2),))
    page = to_html(report(broken))
    assert "<svg" not in page
    assert "! ERROR" in page


@pytest.mark.parametrize("span", [1e-9, 0.003, 0.7, 1.0, 42.0, 3e6])
def test_an_axis_has_a_few_ticks_inside_it(span):
    axis = Axis(-span / 3, span)
    ticks = axis.ticks()
    assert 2 <= len(ticks) <= 8
    assert all(axis.low <= tick <= axis.high for tick in ticks)


def test_only_tables_of_counts_become_bars():
    details = {
        "by_category": CATEGORIES,
        "unscorable": {"candidate": 2, "base": 1},
        "too_many": {"fraud": {"n": 2, "candidate": 3}},
        "empty": {"fraud": {"n": 0, "candidate": 0}},
        "none": {},
        "rows": [{"n": 1}],
    }
    assert list(category_tables(details)) == ["by_category"]


def test_a_bar_is_the_share_of_its_category():
    tags = Reader(category_bars(CATEGORIES)).tags
    bars = [(given["width"], given["fill"]) for tag, given in tags if tag == "rect"]
    assert bars == [("16.67%", "#111"), ("50.00%", "#fff"), ("0.00%", "#111"), ("100.00%", "#fff")]
    assert "candidate 1 of 6" in Reader(category_bars(CATEGORIES)).text


def test_questions_and_details_of_a_gate_that_failed_are_open():
    tags = Reader(to_html(report(ACCURACY, BROKEN, REGRESSION))).tags
    assert ["open" in given for tag, given in tags if tag == "details"] == [False, True]
    assert "unscorable candidate 2, base 1" in Reader(to_html(report(HARM))).text
