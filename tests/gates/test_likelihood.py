import json
import math

import pytest

from sparsegate.contracts import Prediction, Sample, Verdict
from sparsegate.errors import DataError, MissingEvidenceError
from sparsegate.files import read_records
from sparsegate_gates.likelihood import Likelihood, LikelihoodSettings
from sparsegate_gates.lint import Need, Sizes


@pytest.fixture
def scored(files):
    """Return a function that writes how likely a model finds 100 expected replies, in nats for each token."""

    def write(role, per_token, *, n=100, tokens=20, spread=0.0):
        lines = [
            Prediction(
                f"q{i}",
                f"reply {i}",
                "something else",
                False,
                (per_token(i) if callable(per_token) else per_token) + (-1) ** i * spread,
                {"topic": "returns" if i < 40 else "delivery"},
                tokens,
            )
            for i in range(n)
        ]
        files.records(f"predictions.{role}", lines)
        files.records("data.evaluation", [Sample(one.id, f"question {one.id}", one.expected) for one in lines])

    return write


def run(files, *, facts=None, **changes):
    values = {"reason": "test", "over_base": 0.8, "over_champion": 1.05, "minimum_n": 80, **changes}
    return Likelihood().run(files.context(LikelihoodSettings(**values), task="generation", **(facts or {})))


def test_likelier_than_the_base_and_no_less_than_the_champion_passes(files, scored):
    scored("candidate", 2.0, spread=0.1)
    scored("base", 3.0, spread=0.1)
    scored("champion", 2.0, spread=0.1)
    result = run(files)
    assert result.verdict is Verdict.PASS
    over_base, over_champion = result.checks
    assert (over_base.name, over_base.observed) == ("response perplexity / base", pytest.approx(math.exp(-1)))
    assert (over_champion.name, over_champion.observed) == ("response perplexity / champion", 1.0)
    assert result.details["response perplexity"] == ["candidate 7.39", "base 20.1", "champion 7.39"]


def test_a_gain_that_is_too_small_fails(files, scored):
    scored("candidate", 2.9)
    scored("base", 3.0)
    result = run(files, facts={"first": True})
    assert result.verdict is Verdict.FAIL
    assert result.checks[0].observed == pytest.approx(math.exp(-0.1))


def test_less_likely_than_the_champion_fails_and_names_the_worst_replies(files, scored):
    scored("candidate", lambda i: 2.6 if i == 7 else 2.1)
    scored("base", 3.0)
    scored("champion", 2.0)
    result = run(files)
    assert result.verdict is Verdict.FAIL
    assert result.deciding is not None
    assert result.deciding.name == "response perplexity / champion"
    assert result.deciding.items[0] == "q7"


def test_the_upper_end_of_the_interval_decides(files, scored):
    scored("candidate", 2.75, spread=1.0)
    scored("base", 3.0)
    check = run(files, facts={"first": True}).checks[0]
    assert check.observed < 0.8 < check.interval.high
    assert check.verdict is Verdict.FAIL


def test_a_champion_with_another_tokenizer_is_compared_by_its_own_tokens(files, scored):
    # the same likelihood of the whole reply, cut into half as many tokens
    scored("candidate", 2.0, tokens=20)
    scored("base", 3.0, tokens=20)
    scored("champion", 4.0, tokens=10)
    assert run(files).checks[1].observed == pytest.approx(1.0)


def test_an_anchor_has_the_champions_bound(files, scored):
    for role, per_token in (("candidate", 2.0), ("base", 3.0), ("champion", 2.0), ("anchor", 1.8)):
        scored(role, per_token)
    result = run(files, facts={"anchor": 1})
    assert [check.verdict for check in result.checks] == [Verdict.PASS, Verdict.PASS, Verdict.FAIL]


def test_a_slice_that_gained_nothing_fails_where_slices_are_asked(files, scored):
    scored("candidate", lambda i: 3.1 if i < 40 else 2.0)
    scored("base", 3.0)
    assert run(files, facts={"first": True}).verdict is Verdict.PASS
    result = run(files, facts={"first": True}, slice_over_base=1.0)
    assert result.deciding is not None
    assert result.deciding.name == "topic=returns"
    few = run(files, facts={"first": True}, slice_over_base=1.0, slice_minimum_n=50)
    assert few.details["not_judged"] == ["topic=returns: 40 items, needs 50"]


def test_too_few_items_are_insufficient(files, scored):
    scored("candidate", 2.0, n=79)
    scored("base", 3.0, n=79)
    assert run(files, facts={"first": True}).verdict is Verdict.INSUFFICIENT


def test_no_champion_is_missing_evidence_unless_the_run_is_the_first(files, scored):
    scored("candidate", 2.0)
    scored("base", 3.0)
    with pytest.raises(MissingEvidenceError, match="no champion"):
        run(files)


@pytest.mark.parametrize("role", ["candidate", "base"])
@pytest.mark.parametrize("field", ["nll_nats", "response_tokens"])
def test_a_reply_that_was_not_scored_is_missing_evidence(files, scored, role, field):
    scored("candidate", 2.0)
    scored("base", 3.0)
    lines = read_records(files.artifacts[f"predictions.{role}"], Prediction)
    lines[3] = Prediction(**{**vars(lines[3]), field: None})
    files.records(f"predictions.{role}", lines)
    with pytest.raises(MissingEvidenceError, match=rf"predictions\.{role}.*'q3'.*generation"):
        run(files, facts={"first": True})


@pytest.mark.parametrize("tokens", [0, -3, 2.5, True, "20", math.nan])
def test_a_length_that_is_none_is_an_error(files, scored, tokens):
    scored("candidate", 2.0)
    scored("base", 3.0)
    path = files.artifacts["predictions.candidate"]
    files.text("predictions.candidate", path.read_text().replace(": 20}", f": {json.dumps(tokens)}}}", 1))
    with pytest.raises(DataError, match="record 1"):
        run(files, facts={"first": True})


def test_settings_say_what_is_wrong():
    settings = LikelihoodSettings(reason=" ", over_base=1.2, over_champion=math.nan, minimum_n=5)
    assert list(settings.problems()) == ["reason", "over_base", "over_champion", "minimum_n"]


def test_a_task_of_labels_can_not_pass_and_is_told_so():
    settings = LikelihoodSettings(reason="test", over_base=0.8, over_champion=1.05, minimum_n=80, slice_over_base=1.0)
    sizes = Sizes(200, 100, 0, 0, slices={"topic=a": 45, "topic=b": 55})
    assert [(need.question, need.has, need.needed) for need in settings.needs(sizes)] == [
        ("expected responses", 100, 80),
        ("smallest group, topic=a", 45, 40),
    ]
    (need,) = settings.needs(Sizes(200, 100, 0, 0, labels={"label=a": 100}))
    assert isinstance(need, Need)
    assert not need.can_pass
