"""Runs a Great Expectations suite over samples, keeps its Data Docs, and guards what Great Expectations lets through.

It passes an empty suite, an empty table, a column of nulls and, on request, one in which no value holds. An outcome
here passes only if the expectation ran, succeeded and found at least one value that holds.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

from sparsegate.contracts import JSON, Sample
from sparsegate.errors import DataError, did_you_mean
from sparsegate.files import read_json
from sparsegate_gates.data_docs import make_self_contained

_PACKAGE = "sparsegate_gates.expectations"


@dataclass(frozen=True)
class ExpectationOutcome:
    """How one expectation ended.

    Args:
        name: Expectation type and column.
        passed: It ran, succeeded and found a value that holds.
        looked_at: Values (or rows) it looked at.
        unexpected: Values that broke it.
        problem: What is wrong, empty if it passed.
        crashed: It raised instead of judging.
    """

    name: str
    passed: bool
    looked_at: int
    unexpected: int
    problem: str
    crashed: bool


def load_suite(name_or_path: str, *, task: str) -> list[dict[str, JSON]]:
    """Return the expectations of a shipped suite or a suite file that are meant for a task.

    Args:
        name_or_path: Name of a shipped suite, or path of a JSON file as Great Expectations writes suites.
        task: Expectations with another ``task`` in their meta are left out.

    Raises:
        DataError: If there is no such suite or it is not one.
    """
    shipped = {entry.name[:-5]: entry for entry in resources.files(_PACKAGE).iterdir() if entry.name.endswith(".json")}
    if name_or_path in shipped:
        suite = json.loads(shipped[name_or_path].read_text(encoding="utf-8"))
    elif name_or_path.endswith(".json"):
        suite = read_json(Path(name_or_path))
    else:
        raise DataError(f"unknown suite '{name_or_path}'{did_you_mean(name_or_path, shipped)}; or give a .json file")
    expectations = suite.get("expectations") if isinstance(suite, Mapping) else None
    if not isinstance(expectations, list) or not all(
        isinstance(entry, Mapping) and "type" in entry for entry in expectations
    ):
        raise DataError(f"suite '{name_or_path}' must hold a list 'expectations', each with a 'type'")
    return [dict(entry) for entry in expectations if (entry.get("meta") or {}).get("task", task) == task]


def run_suite(
    tables: Mapping[str, Sequence[Sample]],
    expectations: Sequence[Mapping[str, JSON]],
    parameters: Mapping[str, Mapping[str, JSON]],
    *,
    data_docs: Path,
) -> dict[str, list[ExpectationOutcome]]:
    """Validate each table and build the Data Docs of all of them.

    Args:
        tables: Name to samples.
        expectations: At least one.
        parameters: Table name to the values of its ``$PARAMETER`` entries.
        data_docs: Folder for the static site, which opens without a network.

    Returns:
        Table name to one outcome for each expectation.
    """
    # set before the import: no usage statistics leave the machine
    os.environ["GX_ANALYTICS_ENABLED"] = "false"
    import great_expectations as gx
    from great_expectations.data_context.types.base import ProgressBarsConfig

    context = gx.get_context(mode="ephemeral")
    context.variables.progress_bars = ProgressBarsConfig(globally=False)
    context.add_data_docs_site(site_name="sparsegate", site_config=_site(data_docs))
    source = context.data_sources.add_pandas("samples")
    outcomes: dict[str, list[ExpectationOutcome]] = {}
    for name, samples in tables.items():
        batch = source.add_dataframe_asset(name).add_batch_definition_whole_dataframe("all")
        suite = context.suites.add(gx.ExpectationSuite(name=name, expectations=[dict(entry) for entry in expectations]))
        definition = context.validation_definitions.add(gx.ValidationDefinition(name=name, data=batch, suite=suite))
        result = definition.run(
            batch_parameters={"dataframe": _frame(samples)},
            expectation_parameters=dict(parameters[name]),
            # no examples: what people wrote is not for a report
            result_format={"result_format": "SUMMARY", "partial_unexpected_count": 0},
        )
        outcomes[name] = [_outcome(entry, rows=len(samples)) for entry in result.to_json_dict()["results"]]
    context.build_data_docs(site_names=["sparsegate"])
    make_self_contained(data_docs)
    return outcomes


def _frame(samples: Sequence[Sample]) -> Any:
    import pandas as pd

    columns = ("id", "prompt", "response")
    return pd.DataFrame({column: [getattr(sample, column) for sample in samples] for column in columns}, dtype=object)


def _site(folder: Path) -> dict[str, JSON]:
    return {
        "class_name": "SiteBuilder",
        "show_how_to_buttons": False,
        "site_index_builder": {"class_name": "DefaultSiteIndexBuilder"},
        "store_backend": {"class_name": "TupleFilesystemStoreBackend", "base_directory": str(folder.resolve())},
    }


def _outcome(entry: Mapping[str, Any], *, rows: int) -> ExpectationOutcome:
    config, found = entry["expectation_config"], entry.get("result") or {}
    column = config["kwargs"].get("column")
    name = f"{config['type']}({column})" if column else str(config["type"])
    looked_at = int(found.get("element_count", rows))
    asks_for_nulls = config["type"] == "expect_column_values_to_not_be_null"
    if not asks_for_nulls:
        looked_at -= int(found.get("missing_count") or 0)
    unexpected = int(found.get("unexpected_count") or 0)
    crashed = _raised(entry.get("exception_info") or {})
    if crashed:
        problem = "could not be evaluated"
    elif entry.get("success") is not True:
        observed = found.get("observed_value")
        problem = f"observed {observed}" if observed is not None else f"{unexpected} values break it"
    else:
        # "mostly": 0 lets a column pass in which nothing holds, such as one of nulls
        problem = (
            "" if looked_at > unexpected else "found no value that holds" if looked_at else "found no value to look at"
        )
    return ExpectationOutcome(name, not problem, looked_at, unexpected, problem, crashed)


def _raised(info: Mapping[str, Any]) -> bool:
    """Great Expectations writes one report, or one for each metric that failed."""
    if "raised_exception" in info:
        return bool(info["raised_exception"])
    return any(_raised(part) for part in info.values() if isinstance(part, Mapping))
