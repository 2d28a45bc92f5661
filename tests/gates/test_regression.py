import pytest

from sparsegate.contracts import Prediction, Verdict
from sparsegate.errors import DataError, MissingEvidenceError
from sparsegate_gates.regression import Regression, RegressionSettings


def run(files, *, first=None, **changes):
    values = {"reason": "test", "margin": 0.03, "minimum_n": 100, **changes}
    facts = {} if first is None else {"first": first}
    return Regression().run(files.context(RegressionSettings(**values), **facts))


def test_the_champion_against_itself_passes(files, share):
    files.predictions("predictions.candidate", share(400, 480))
    files.predictions("predictions.champion", share(400, 480))
    result = run(files, slice_margin=0.1)
    assert result.verdict is Verdict.PASS
    assert result.details["mcnemar_exact_p"] == 1.0
    assert result.details["compared_with"] == "champion"


def test_no_discordant_pair_at_small_n_is_no_proof_of_a_small_margin(files, share):
    files.predictions("predictions.candidate", share(45, 50))
    files.predictions("predictions.champion", share(45, 50))
    assert run(files, minimum_n=50).verdict is Verdict.FAIL


def test_a_loss_of_five_points_fails_and_names_the_worst_flips(files, share):
    files.predictions("predictions.champion", share(400, 480), nll=0.1)
    files.predictions("predictions.candidate", share(376, 480))
    lines = [
        Prediction(**{**vars(line), "nll_nats": 9.0 if line.id == "q390" else 1.0})
        for line in _read(files.artifacts["predictions.candidate"])
    ]
    files.records("predictions.candidate", lines)
    result = run(files)
    assert result.verdict is Verdict.FAIL
    assert result.details["negative_flips"] == 24
    assert result.checks[0].items[0] == "q390"
    assert len(result.checks[0].items) == 10


def _read(path):
    from sparsegate.files import read_records

    return read_records(path, Prediction)


def test_equal_accuracy_with_many_flips_fails(files):
    files.predictions("predictions.champion", [position % 2 == 0 for position in range(480)])
    files.predictions("predictions.candidate", [position % 2 == 1 for position in range(480)])
    result = run(files)
    assert result.checks[0].observed == 0
    assert result.verdict is Verdict.FAIL


def test_a_slice_that_lost_fails(files, share):
    # every tenth item is of the phone channel
    files.predictions("predictions.champion", [True] * 1000)
    files.predictions("predictions.candidate", [bool(position % 10) or position > 250 for position in range(1000)])
    result = run(files, margin=0.05, slice_margin=0.1)
    assert result.deciding is not None
    assert result.deciding.name == "channel=phone"


def test_a_first_version_is_held_against_the_base(files, share):
    files.predictions("predictions.candidate", share(400, 480))
    files.predictions("predictions.base", share(100, 480))
    result = run(files, first=True)
    assert result.verdict is Verdict.PASS
    assert result.details["compared_with"] == "base"


def test_a_first_version_that_is_worse_than_the_base_fails(files, share):
    files.predictions("predictions.candidate", share(100, 480))
    files.predictions("predictions.base", share(400, 480))
    assert run(files, first=True).verdict is Verdict.FAIL


@pytest.mark.parametrize("first", [None, False, "yes", 1])
def test_no_champion_is_missing_evidence_unless_the_run_is_the_first(files, share, first):
    files.predictions("predictions.candidate", share(400, 480))
    files.predictions("predictions.base", share(100, 480))
    with pytest.raises(MissingEvidenceError, match="no champion"):
        run(files, first=first)


def test_a_champion_whose_file_is_gone_is_missing_evidence_even_on_a_first_run(files, share):
    files.predictions("predictions.candidate", share(400, 480))
    files.predictions("predictions.base", share(100, 480))
    files.artifacts["predictions.champion"] = files.folder / "gone.jsonl"
    with pytest.raises(MissingEvidenceError, match="champion"):
        run(files, first=True)


def test_too_few_items_are_insufficient(files, share):
    files.predictions("predictions.candidate", share(50, 50))
    files.predictions("predictions.champion", share(40, 50))
    assert run(files).verdict is Verdict.INSUFFICIENT


def test_an_empty_champion_file_is_missing_evidence(files, share):
    files.predictions("predictions.candidate", share(50, 50))
    files.text("predictions.champion", "\n")
    with pytest.raises(MissingEvidenceError, match="no lines"):
        run(files)


@pytest.mark.parametrize("damage", ["order", "ids", "expected", "length"])
def test_answers_to_other_questions_are_an_error(files, share, damage):
    files.predictions("predictions.candidate", share(400, 480))
    files.predictions("predictions.champion", share(400, 480))
    lines = _read(files.artifacts["predictions.champion"])
    if damage == "order":
        lines = lines[::-1]
    elif damage == "length":
        lines = lines[:-1]
    elif damage == "ids":
        lines[3] = Prediction("other", lines[3].expected, lines[3].predicted, lines[3].correct)
    else:
        lines[3] = Prediction(lines[3].id, "unknown", "unknown", True)
    files.records("predictions.champion", lines)
    del files.artifacts["data.evaluation"]
    with pytest.raises(DataError, match=r"predictions\.champion"):
        run(files)


def test_nan_in_a_file_is_an_error(files, share):
    files.predictions("predictions.candidate", share(400, 480))
    files.predictions("predictions.champion", share(400, 480))
    path = files.artifacts["predictions.champion"]
    files.text("predictions.champion", path.read_text().replace('"nll_nats": null', '"nll_nats": NaN', 1))
    with pytest.raises(DataError, match="finite"):
        run(files)


def test_settings_say_what_is_wrong():
    assert list(RegressionSettings(reason="", margin=-0.1, minimum_n=0).problems()) == ["reason", "margin", "minimum_n"]


# --- slices by Holm's correction ---


def sliced(files, lost, *, groups=20, size=40):
    """Write a champion that is right and a candidate that loses so many items of the first slices."""
    for name in ("champion", "candidate"):
        lines = []
        for position in range(groups * size):
            group, place = divmod(position, size)
            wrong = name == "candidate" and group < len(lost) and place < lost[group]
            answer = "b" if wrong else "a"
            lines.append(Prediction(f"q{position}", "a", answer, not wrong, None, {"desk": f"d{group:02}"}))
        files.records(f"predictions.{name}", lines)


def test_a_slice_that_is_shown_to_lose_blocks_and_names_its_items(files):
    sliced(files, [20])
    result = run(files, margin=0.1, slice_margin=0.1, slice_rule="holm")
    assert result.verdict is Verdict.FAIL
    assert [check.name for check in result.checks if check.verdict is Verdict.FAIL] == ["desk=d00: Holm-adjusted p"]
    assert "20 lost and 0 won of 40, margin 0.1" in result.reason
    assert result.deciding is not None
    assert result.deciding.items == tuple(sorted(f"q{i}" for i in range(20))[:10])


def test_many_small_slices_do_not_block_an_equal_model_under_holm(files):
    sliced(files, [4, 5, 6])
    assert run(files, margin=0.1, slice_margin=0.1, slice_rule="prove").verdict is Verdict.FAIL
    assert run(files, margin=0.1, slice_margin=0.1, slice_rule="holm").verdict is Verdict.PASS


def test_the_correction_grows_with_the_number_of_slices(files):
    sliced(files, [11], groups=2)
    few = run(files, margin=1, minimum_n=1, slice_margin=0.1, slice_rule="holm").checks[1].observed
    sliced(files, [11], groups=20)
    many = run(files, margin=1, minimum_n=1, slice_margin=0.1, slice_rule="holm").checks[1].observed
    assert few is not None
    assert many == pytest.approx(10 * few)


def test_a_small_slice_blocks_under_holm_too_where_the_policy_says_so(files):
    sliced(files, [], size=10)
    result = run(files, margin=0.1, slice_margin=0.1, slice_rule="holm", small_slices="block")
    assert result.verdict is Verdict.INSUFFICIENT


# --- items that belong together ---


def by_document(files, *, documents, size=20):
    """Write a champion and a candidate that trade whole documents: each wins one where the other loses one."""
    for name in ("champion", "candidate"):
        lines = []
        for position in range(documents * size):
            document = position // size
            right = document % 10 != (0 if name == "candidate" else 1)
            lines.append(Prediction(f"q{position}", "a", "a" if right else "b", right, None, {"doc": f"d{document}"}))
        files.records(f"predictions.{name}", lines)


def test_whole_documents_that_change_sides_are_no_proof_that_items_would_be(files):
    by_document(files, documents=30)
    assert run(files, margin=0.06).verdict is Verdict.PASS
    result = run(files, margin=0.06, cluster_column="doc")
    assert result.verdict is Verdict.FAIL
    assert result.checks[0].interval is not None
    assert result.checks[0].interval.method == "cluster bootstrap"


def test_a_column_to_cluster_by_makes_no_slices(files):
    by_document(files, documents=30)
    assert len(run(files, margin=0.5, slice_margin=0.5, slice_minimum_n=1, cluster_column="doc").checks) == 1


def test_one_document_proves_nothing(files):
    by_document(files, documents=1, size=400)
    assert run(files, margin=0.5, cluster_column="doc").verdict is Verdict.FAIL


def test_items_without_the_column_to_cluster_by_are_an_error(files, share):
    files.predictions("predictions.candidate", share(400, 480))
    files.predictions("predictions.champion", share(400, 480))
    with pytest.raises(DataError, match="no column 'doc' to cluster by"):
        run(files, cluster_column="doc")


# --- a frozen anchor ---


def test_many_small_losses_are_caught_by_the_anchor(files, share):
    files.predictions("predictions.anchor", share(440, 480))
    files.predictions("predictions.champion", share(404, 480))
    files.predictions("predictions.candidate", share(400, 480))
    settings = RegressionSettings("test", margin=0.03, minimum_n=100, anchor_margin=0.05)
    assert Regression().run(files.context(settings)).verdict is Verdict.PASS
    result = Regression().run(files.context(settings, anchor=1))
    assert result.verdict is Verdict.FAIL
    assert result.deciding is not None
    assert result.deciding.name == "candidate - anchor (version 1)"
    assert result.deciding.threshold == -0.05


def test_the_anchors_margin_is_the_champions_where_the_policy_gives_none(files, share):
    for name in ("anchor", "champion", "candidate"):
        files.predictions(f"predictions.{name}", share(400, 480))
    result = Regression().run(files.context(RegressionSettings("test", margin=0.03, minimum_n=100), anchor=1))
    assert result.verdict is Verdict.PASS
    assert [check.threshold for check in result.checks] == [-0.03, -0.03]


def test_an_anchor_that_is_named_and_was_not_evaluated_is_missing_evidence(files, share):
    files.predictions("predictions.champion", share(400, 480))
    files.predictions("predictions.candidate", share(400, 480))
    settings = RegressionSettings("test", margin=0.03, minimum_n=100)
    with pytest.raises(MissingEvidenceError, match=r"predictions\.anchor"):
        Regression().run(files.context(settings, anchor=1))


def test_an_anchor_that_answered_another_set_is_an_error(files, share):
    files.predictions("predictions.champion", share(400, 480))
    files.predictions("predictions.candidate", share(400, 480))
    files.predictions("predictions.anchor", share(400, 480), prefix="other")
    settings = RegressionSettings("test", margin=0.03, minimum_n=100)
    with pytest.raises(DataError, match=r"predictions\.anchor"):
        Regression().run(files.context(settings, anchor=1))
