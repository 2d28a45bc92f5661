import json
import math

import pytest

from sparsegate.contracts import TextScore, Verdict
from sparsegate.errors import DataError, MissingEvidenceError
from sparsegate.evaluation.forgetting import perplexity, perplexity_ratio
from sparsegate_gates.lint import Sizes
from sparsegate_gates.policy import load_policy
from sparsegate_gates.regression import Regression, RegressionSettings


def scores(files, role, *, per_token=3.0, n=60, tokens=10, spread=0.0):
    """Write scores of this many nats for each token, every other text a bit above and below."""
    lines = [
        TextScore(f"t{i}", "passage" if i % 2 else "question", tokens * (per_token + (-1) ** i * spread), tokens)
        for i in range(n)
    ]
    files.records(f"general.{role}", lines)
    return lines


@pytest.fixture
def judged(files, share):
    """Sound answers of candidate, base and champion, and a function that judges what they kept."""
    for role in ("candidate", "base", "champion"):
        files.predictions(f"predictions.{role}", share(400, 480))

    def run(task="generation", **changes):
        values = {"reason": "test", "margin": 0.5, "minimum_n": 100, "general_over_base": 1.25, **changes}
        context = files.context(RegressionSettings(**values))
        return Regression().run(type(context)(**{**vars(context), "task": task}))

    return run


def test_a_model_that_kept_everything_passes_and_one_that_lost_more_than_the_bound_fails(files, judged):
    scores(files, "base")
    scores(files, "candidate")
    assert judged().verdict is Verdict.PASS
    scores(files, "candidate", per_token=3.0 + math.log(1.3))
    result = judged()
    assert result.verdict is Verdict.FAIL
    assert result.deciding is not None
    assert result.deciding.observed == pytest.approx(1.3)
    assert len(result.deciding.items) == 10


def test_the_upper_end_of_the_interval_decides(files, judged):
    scores(files, "base")
    scores(files, "candidate", per_token=3.0 + math.log(1.2), spread=1.0)
    result = judged()
    assert result.deciding is not None
    assert result.deciding.observed == pytest.approx(1.2)
    assert result.verdict is Verdict.FAIL


def test_the_champion_has_a_bound_of_its_own(files, judged):
    scores(files, "base")
    scores(files, "champion", per_token=2.8)
    scores(files, "candidate")
    assert judged(general_over_champion=1.3).verdict is Verdict.PASS
    result = judged(general_over_champion=1.1)
    assert result.deciding is not None
    assert result.deciding.name == "general perplexity / champion"


def test_a_classifier_may_forget_where_the_policy_says_so_and_is_reported(files, judged):
    scores(files, "base")
    scores(files, "candidate", per_token=5.0)
    assert judged(task="classification").verdict is Verdict.FAIL
    result = judged(task="classification", general_for_labels=False)
    assert result.verdict is Verdict.PASS
    assert [check.name for check in result.checks] == ["candidate - champion"]
    assert "ratio 7.39 [7.39, 7.39] (passage 7.39, question 7.39)" in result.details["general perplexity"][1]


@pytest.mark.parametrize("missing", ["candidate", "base", "champion"])
def test_scores_that_are_not_there_are_no_evidence(files, judged, missing):
    for role in ("candidate", "base", "champion"):
        scores(files, role)
    del files.artifacts[f"general.{missing}"]
    with pytest.raises(MissingEvidenceError, match=f"general.{missing}"):
        judged(general_over_champion=1.1)


def test_where_no_bound_is_set_missing_scores_are_told(judged):
    result = judged(general_over_base=None)
    assert result.verdict is Verdict.PASS
    assert result.details["general perplexity"] == "not measured: evaluation.general_text is not set"


def test_too_few_texts_are_insufficient(files, judged):
    scores(files, "base", n=20)
    scores(files, "candidate", n=20)
    assert judged().verdict is Verdict.INSUFFICIENT


def test_scores_of_other_texts_are_an_error(files, judged):
    scores(files, "base")
    lines = scores(files, "candidate")
    files.records("general.candidate", lines[::-1])
    with pytest.raises(DataError, match="other texts"):
        judged()


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"nats": float("nan")}, "nats must be a finite number"),
        ({"nats": -1.0}, "nats must be a finite number, at least 0"),
        ({"tokens": 0}, "tokens must be a whole number above 0"),
        ({"tokens": True}, "tokens must be a whole number above 0"),
        ({"id": "t1"}, "id 't1' stands twice"),
    ],
)
def test_a_line_that_is_no_score_is_an_error(files, judged, change, problem):
    scores(files, "base")
    lines = scores(files, "candidate")
    text = [json.dumps({**vars(line), **(change if line.id == "t0" else {})}) for line in lines]
    files.text("general.candidate", "\n".join(text))
    with pytest.raises(DataError, match=problem):
        judged()


def test_the_ratio_is_that_of_the_perplexities_and_holds_across_tokenizers():
    base = [TextScore(str(i), "k", 20.0 + i, 10) for i in range(30)]
    same = [TextScore(line.id, "k", line.nats + 1.0, 10) for line in base]
    ratio, interval = perplexity_ratio(same, base)
    assert ratio == pytest.approx(perplexity(same) / perplexity(base))
    assert ratio == pytest.approx(math.exp(0.1))
    assert interval.low == pytest.approx(interval.high)
    finer = [TextScore(line.id, "k", line.nats, 25) for line in same]
    assert perplexity_ratio(finer, base)[0] == ratio


def test_the_interval_covers_the_true_ratio_about_as_often_as_it_says():
    import numpy as np

    draw, covered = np.random.default_rng(0), 0
    base = [TextScore(str(i), "k", 30.0, 10) for i in range(80)]
    for _ in range(200):
        losses = draw.gamma(2.0, 0.1, size=80)  # skewed, as losses of forgetting models are
        lines = [TextScore(str(i), "k", 30.0 + 10 * loss, 10) for i, loss in enumerate(losses)]
        interval = perplexity_ratio(lines, base, resamples=500)[1]
        covered += interval.low <= math.exp(0.2) <= interval.high
    assert 180 <= covered <= 198


def test_validate_counts_general_texts_only_where_they_are_judged():
    sizes = {"train": 500, "evaluation": 480, "red_team": 60, "benign": 60, "general": 20}
    settings = load_policy("standard").gates["regression"]
    (need,) = [need for need in settings.needs(Sizes(**sizes)) if need.items == "general"]
    assert (need.has, need.needed, need.can_pass) == (20, 40, False)
    router = Sizes(**sizes, labels={"label=a": 240, "label=b": 240})
    assert [need for need in settings.needs(router) if need.items == "general"] == []
    strict = load_policy("strict").gates["regression"]
    assert [need for need in strict.needs(router) if need.items == "general"]
