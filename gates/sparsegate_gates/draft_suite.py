"""Drafts a Great Expectations suite from a project's own data, for people to read, change and name in their policy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sparsegate.contracts import JSON, Sample, Task

# what is new may be twice as long as what was seen, or half
_SLACK = 2
_KEPT_VARIETY = 0.9


def draft_suite(tables: Mapping[str, Sequence[Sample]], *, task: Task, mixed: bool = False) -> dict[str, JSON]:
    """Return a suite that all the tables keep, and that data unlike them breaks, as Great Expectations writes suites.

    It asks for the columns, for text in each of them, for the lengths and the variety that the data has, and for
    its labels. Numbers of rows stay the policy's.

    Args:
        tables: Name to samples, none of them empty.
        task: Labels are asked for in a classification only.
        mixed: Some training rows answer in free text (a safety mix): then the labels are asked for without naming them
            all, as in the shipped suite.
    """
    assert tables
    assert all(tables.values())
    expectations = [
        _expect("table_row_count_to_be_between", min_value={"$PARAMETER": "minimum_rows"}),
        _expect("table_columns_to_match_set", column_set=["id", "prompt", "response"], exact_match=True),
        _expect("column_values_to_be_unique", column="id"),
    ]
    for column in ("id", "prompt", "response"):
        expectations.append(_expect("column_values_to_not_be_null", column=column))
    for column in ("prompt", "response"):
        lengths = [len(getattr(sample, column)) for samples in tables.values() for sample in samples]
        low, high = max(1, min(lengths) // _SLACK), max(lengths) * _SLACK
        expectations.append(_expect("column_value_lengths_to_be_between", column=column, min_value=low, max_value=high))
        expectations.append(_expect("column_values_to_match_regex", column=column, regex=r"\S"))
    distinct = min(len({sample.prompt for sample in samples}) / len(samples) for samples in tables.values())
    variety = round(distinct * _KEPT_VARIETY, 3)
    expectations.append(_expect("column_proportion_of_unique_values_to_be_between", column="prompt", min_value=variety))
    if task == "classification":
        expectations += _label_expectations(tables, mixed=mixed)
    rows = ", ".join(f"{name} {len(samples)}" for name, samples in tables.items())
    return {
        "name": "drafted",
        "meta": {"notes": f"Drafted by sparsegate validate --draft-suite from these rows: {rows}. Read and change it."},
        "expectations": expectations,
    }


def _label_expectations(tables: Mapping[str, Sequence[Sample]], *, mixed: bool) -> list[dict[str, JSON]]:
    seen = [{sample.response for sample in samples} for samples in tables.values()]
    everywhere = sorted(set.intersection(*seen))
    allowed = {"$PARAMETER": "labels"} if mixed else sorted(set.union(*seen))
    expectations = [_expect("column_values_to_be_in_set", column="response", value_set=allowed)]
    if everywhere:
        expectations.append(_expect("column_distinct_values_to_contain_set", column="response", value_set=everywhere))
    return [{**expectation, "meta": {"task": "classification"}} for expectation in expectations]


def _expect(kind: str, **kwargs: JSON) -> dict[str, JSON]:
    return {"type": f"expect_{kind}", "kwargs": kwargs}
