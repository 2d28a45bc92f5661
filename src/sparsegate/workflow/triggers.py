"""Why does a run start? New data, a schedule slot, drift of what users ask, or a person; found out before it starts."""

from __future__ import annotations

from typing import NamedTuple

from sparsegate.config import DriftConfig, RunConfig
from sparsegate.data.sources import read_rows
from sparsegate.errors import DataError, EvidenceError, did_you_mean
from sparsegate.evaluation.two_sample import TwoSampleTest, classifier_test
from sparsegate.registry.envelope import unseal
from sparsegate.registry.package import EVIDENCE_TYPE
from sparsegate.registry.versions import live_version, read_evidence
from sparsegate.workflow.inputs import Inputs

_PARTS = ("train", "validation", "evaluation")


class Start(NamedTuple):
    """Whether a run starts.

    Args:
        triggers: Why, such as ``"schedule: slot 2026-11-25"``; recorded with the run.
        missing: What ``trigger`` asked for and did not happen, or None; then the run does not start.
    """

    triggers: tuple[str, ...]
    missing: str | None


def find_triggers(config: RunConfig, inputs: Inputs) -> Start:
    """Find out what speaks for a run. Drift can start one and has no say in how it ends.

    Raises:
        DataError: If the log of inputs can't be used.
        RegistryError: If MLflow fails.
    """
    drift, drifted = _drift(config, inputs) if config.trigger == "drift" else ("", False)
    new_data = _new_data(config, inputs)
    schedule = f"schedule: slot {config.slot}" if config.slot else None
    found = tuple(filter(None, (new_data, schedule, f"drift: {drift}" if drifted else None)))
    missing = None
    if config.trigger == "drift" and not drifted:
        missing = f"no drift: {drift}"
    elif config.trigger == "new_data" and new_data is None:
        missing = "no new data: train, validation and evaluation are those of the champion"
    return Start(found or ("manual: neither new data nor a slot",), missing)


def _new_data(config: RunConfig, inputs: Inputs) -> str | None:
    """Say what is new since the champion's data, or None."""
    registry = config.registry
    number = live_version(registry.tracking_uri, registry.name, registry.alias)
    if number is None:
        return "new data: there is no champion yet"
    try:
        data = read_evidence(registry.tracking_uri, registry.name, number)
        known = unseal(data, predicate_type=EVIDENCE_TYPE).statement.predicate["data_sha256"]
    except (EvidenceError, KeyError):
        return f"new data: what version {number} was trained on can't be read"
    now = inputs.digests()
    changed = [part for part in _PARTS if known.get(part) != now[part]]
    return f"new data: {', '.join(changed)} changed since version {number}" if changed else None


def _drift(config: RunConfig, inputs: Inputs) -> tuple[str, bool]:
    """Compare the log of inputs with the training data; return the finding, and whether it is drift."""
    settings = config.drift
    trained = {sample.prompt.strip() for sample in inputs.train if sample.id not in inputs.mix_ids}
    asked = set(_logged(settings, config.data.prompt_column))
    if min(len(trained), len(asked)) < settings.minimum_n:
        needs = f"each side needs {settings.minimum_n} distinct prompts"
        return f"{needs}, the log has {len(asked)} and the training data {len(trained)}", False
    found = classifier_test(sorted(trained), sorted(asked), confidence=settings.confidence)
    return _in_words(found, settings), found.interval.low >= settings.minimum_auc


def _in_words(found: TwoSampleTest, settings: DriftConfig) -> str:
    return (
        f"a classifier tells {found.num_recent} logged from {found.num_reference} training prompts with AUC"
        f" {found.auc:.3f} [{found.interval.low:.3f}, {found.interval.high:.3f}], p = {found.p_value:.2g};"
        f" drift is a low end of at least {settings.minimum_auc:g}"
    )


def _logged(settings: DriftConfig, prompt_column: str) -> list[str]:
    assert settings.log is not None, "the rules of the configuration ask for it"
    column = settings.column or prompt_column
    rows = read_rows(settings.log)[-settings.last :]
    prompts = [row[column].strip() for row in rows if row.get(column, "").strip()]
    if not prompts:
        names = sorted({name for row in rows for name in row})
        raise DataError(f"{settings.log} has no text in column '{column}'{did_you_mean(column, names)}")
    return prompts
