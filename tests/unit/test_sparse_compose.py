from typing import get_args

import pytest
import torch

from sparsegate.contracts import SupportKind
from sparsegate.errors import DeltaError, UsageError
from sparsegate.sparse.compose import Overlap, as_elements, combine, overlap
from sparsegate.sparse.delta import Delta, DeltaEntry, apply_delta, read_delta, revert_delta, write_delta
from sparsegate.sparse.support import SparseSupport

BASE = "b" * 64
NUM_UNITS = {"element": 24, "column": 6, "row": 4}  # of the weight of shape (4, 6)
KINDS = [kind for kind in get_args(SupportKind) if kind in NUM_UNITS]


class Weights(torch.nn.Module):
    def __init__(self, dtype=torch.float32):
        super().__init__()
        draw = torch.Generator().manual_seed(0)
        self.w = torch.nn.Linear(6, 4, bias=False, dtype=dtype)
        self.v = torch.nn.Linear(5, 3, bias=False, dtype=dtype)
        with torch.no_grad():
            self.w.weight.copy_(torch.randn(4, 6, generator=draw))
            self.v.weight.copy_(torch.randn(3, 5, generator=draw))


def change(name, kind, ids, step, dtype=torch.float32):
    """Return a delta that adds ``step`` to every entry of a support of :class:`Weights`."""
    support = SparseSupport(kind, torch.tensor(ids, dtype=torch.int32), Weights(dtype).get_submodule(name).weight)
    old = support.originals
    return Delta({f"{name}.weight": DeltaEntry(kind, tuple(support.shape), support.ids, old, old + step)}, BASE, {})


def applied(*deltas, dtype=torch.float32):
    model = Weights(dtype)
    for delta in deltas:
        apply_delta(model, delta)
    return model


# --- overlap ------------------------------------------------------------------------------------


def test_overlap_counts_shared_entries_across_kinds():
    columns, elements = change("w", "column", [1, 4], 0.5), change("w", "element", [1, 2, 7, 23], -1.0)
    (found,) = overlap([columns, elements])
    assert found == Overlap(
        first=0,
        second=1,
        shared_entries=2,
        share=0.5,
        sign_agreement=0.0,
        relative_size=pytest.approx(2.0 / (0.5 * 8**0.5)),
    )


def test_overlap_of_every_pair_is_reported_in_order():
    report = overlap(
        [change("w", "element", [0, 1], 1.0), change("w", "element", [1, 2], 3.0), change("v", "element", [0], 1.0)]
    )
    assert [(pair.first, pair.second, pair.shared_entries) for pair in report] == [(0, 1, 1), (0, 2, 0), (1, 2, 0)]
    assert [pair.sign_agreement for pair in report] == [1.0, None, None]
    assert [pair.share for pair in report] == [0.5, 0.0, 0.0]
    assert report[0].relative_size == pytest.approx(3.0)


def test_overlap_with_a_delta_that_changes_nothing_has_no_relative_size():
    (found,) = overlap([change("w", "element", [0], 0.0), change("w", "element", [0], 1.0)])
    assert found.relative_size is None
    assert found.sign_agreement == 0.0


# --- the sum ------------------------------------------------------------------------------------


def test_the_sum_of_deltas_without_conflict_does_what_all_of_them_do_bit_for_bit():
    deltas = [change("w", "column", [1, 4], 0.1), change("v", "element", [3, 11], 0.3), change("w", "column", [0], 0.7)]
    combined = combine(deltas)
    expected = applied(*deltas)
    model = applied(combined)
    assert torch.equal(model.w.weight, expected.w.weight)
    assert torch.equal(model.v.weight, expected.v.weight)
    revert_delta(model, combined)
    assert torch.equal(model.w.weight, Weights().w.weight)


def test_deltas_of_columns_stay_columns():
    entry = combine([change("w", "column", [1, 4], 0.1), change("w", "column", [0, 5], 0.7)]).entries["w.weight"]
    assert entry.kind == "column"
    assert entry.ids.tolist() == [0, 1, 4, 5]
    assert entry.ids.dtype == torch.int32
    assert entry.old.shape == entry.new.shape == (4, 4)


def test_deltas_of_different_kinds_become_single_entries():
    deltas = [change("w", "column", [1], 0.1), change("w", "element", [0, 23], 0.7)]
    entry = combine(deltas).entries["w.weight"]
    assert entry.kind == "element"
    assert entry.ids.tolist() == [0, 1, 7, 13, 19, 23]
    assert torch.equal(applied(combine(deltas)).w.weight, applied(*deltas).w.weight)


@pytest.mark.parametrize(
    ("conflict", "steps"), [("sum", (1.0, 5.0, 4.0)), ("mean", (1.0, 2.5, 4.0)), ("first", (1.0, 1.0, 4.0))]
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_conflict_rule_decides_shared_entries_and_leaves_the_others(kind, conflict, steps):
    combined = combine([change("w", kind, [0, 1], 1.0), change("w", kind, [1, 2], 4.0)], conflict=conflict)
    entry = as_elements(combined.entries["w.weight"])
    change_by_id = dict(zip(entry.ids.tolist(), (entry.new - entry.old).tolist(), strict=True))
    first_entry_of = 6 if kind == "row" else 1  # the flat index of a unit's first entry over that of the unit
    for unit, step in enumerate(steps):
        assert change_by_id[unit * first_entry_of] == pytest.approx(step, abs=1e-6)
    assert torch.equal(entry.old, Weights().w.weight.detach().flatten()[entry.ids.long()])


def test_the_mean_counts_only_the_deltas_that_hold_the_entry():
    deltas = [change("w", "element", [3], 1.0), change("w", "element", [3], 2.0), change("w", "element", [5], 9.0)]
    entry = combine(deltas, conflict="mean").entries["w.weight"]
    torch.testing.assert_close(entry.new - entry.old, torch.tensor([1.5, 9.0]))


def test_a_conflict_is_an_error_unless_a_rule_is_chosen():
    with pytest.raises(DeltaError, match=r"w\.weight: 1 columns are changed by more than one.*sum, first or mean"):
        combine([change("w", "column", [0, 1], 1.0), change("w", "column", [1, 2], 4.0)])


def test_a_sum_that_overflows_is_refused():
    big = change("w", "element", [0], 4e4, dtype=torch.float16)
    with pytest.raises(DeltaError, match=r"not finite in torch\.float16"):
        combine([big, big], conflict="sum")


def test_deltas_of_different_bases_are_refused():
    ours, theirs = change("w", "element", [0], 1.0), change("w", "element", [1], 1.0)
    theirs = Delta(theirs.entries, "c" * 64, {})
    for together in (overlap, combine):
        with pytest.raises(DeltaError, match="2 different bases: bbbbbbbbbbbb, cccccccccccc"):
            together([ours, theirs])


def test_deltas_that_start_from_different_values_are_refused():
    ours = change("w", "element", [0, 1], 1.0)
    entry = ours.entries["w.weight"]
    theirs = Delta({"w.weight": DeltaEntry("element", (4, 6), entry.ids, entry.old + 1, entry.new)}, BASE, {})
    with pytest.raises(DeltaError, match="start from different values"):
        combine([ours, theirs], conflict="first")


def test_deltas_of_different_precision_are_refused():
    with pytest.raises(DeltaError, match="different shapes or dtypes"):
        combine([change("w", "element", [0], 1.0), change("w", "element", [1], 1.0, dtype=torch.bfloat16)])


def test_nothing_to_combine_and_unknown_rules_are_refused():
    with pytest.raises(UsageError, match="at least one delta"):
        combine([])
    with pytest.raises(UsageError, match="unknown conflict rule 'sums'; did you mean 'sum'"):
        combine([change("w", "element", [0], 1.0)], conflict="sums")


def test_a_combined_delta_is_a_whole_delta_file(tmp_path):
    combined = combine([change("w", "column", [1], 0.1), change("w", "element", [1, 2], 0.7)], conflict="mean")
    write_delta(combined, tmp_path / "delta.safetensors")
    again = read_delta(tmp_path / "delta.safetensors")
    assert again.manifest == {"combined": [{}, {}], "conflict": "mean"}
    assert torch.equal(again.entries["w.weight"].new, combined.entries["w.weight"].new)


@pytest.mark.parametrize("seed", range(20))
def test_combining_random_supports_equals_dense_arithmetic(seed):
    draw = torch.Generator().manual_seed(seed)
    base = Weights().w.weight.detach()
    deltas, total = [], torch.zeros(4, 6, dtype=torch.float64)
    for _ in range(3):
        kind = KINDS[int(torch.randint(len(KINDS), (), generator=draw))]
        count = NUM_UNITS[kind]
        ids = torch.randperm(count, generator=draw)[: 1 + int(torch.randint(count, (), generator=draw))].sort().values
        deltas.append(change("w", kind, ids.tolist(), float(torch.randn((), generator=draw))))
        total += applied(deltas[-1]).w.weight.detach().double() - base.double()
    model = applied(combine(deltas, conflict="sum"))
    torch.testing.assert_close(model.w.weight.detach(), (base.double() + total).float())
