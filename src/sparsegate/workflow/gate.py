"""Judges a candidate and registers nothing: a trained run's, or a model that was trained elsewhere."""

from __future__ import annotations

import logging
from pathlib import Path

from sparsegate.config import RunConfig
from sparsegate.errors import DataError, UsageError
from sparsegate.files import write_json
from sparsegate.registry.tracking import check_tracking
from sparsegate.workflow import judging, stages
from sparsegate.workflow.candidate import find_candidate
from sparsegate.workflow.champion import find_champion, is_first, locked, number_of
from sparsegate.workflow.devices import check_device
from sparsegate.workflow.evaluate import evaluate
from sparsegate.workflow.outcome import Outcome
from sparsegate.workflow.retrain import check
from sparsegate.workflow.run import Run, open_run, reopen_run, resolve_base
from sparsegate_gates.model_files import examine_folder

_LOG = logging.getLogger(__name__)


def gate(folder: Path, *, policy: str | None = None) -> Outcome:
    """Judge a run's candidate, by its own policy or another; nothing is registered.

    Args:
        folder: Folder of a trained run.
        policy: Policy to judge by; None takes the run's own.
    """
    run = reopen_run(folder, policy=policy)
    if not run.delta.exists():
        raise UsageError(f"{folder} has no trained candidate; run 'sparsegate train' or 'sparsegate retrain' first")
    check_tracking(run.config.registry.tracking_uri)
    check_device(run.config.evaluation.device, field="evaluation.device")
    return _judge(run)


def gate_candidate(config: RunConfig, where: str) -> Outcome:
    """Judge a model that was trained elsewhere, by the data, prompts, base and policy of a configuration.

    It is evaluated as a candidate of ours would be, beside the base and the live version of ``registry.name``. What it
    was trained on can't be known: the data gate judges the data that the configuration names.

    Args:
        config: The configuration; what it says of training does not matter.
        where: Folder of a whole model or an adapter, ``models:/NAME/3``, ``models:/NAME@ALIAS`` or ``runs:/ID/model``.
    """
    policy, inputs = check(config)
    check_device(config.evaluation.device, field="evaluation.device")
    base = resolve_base(config)
    given = find_candidate(where, config, inputs.labels, base)
    run = open_run(config, policy, inputs, base, given=given)
    if given.cost is None:
        write_json(run.folder / "evaluate" / "size.json", given.size(base))
    else:
        write_json(run.cost, given.cost)
    return _judge(run)


def _judge(run: Run) -> Outcome:
    with locked(run):
        live = find_champion(run)
        stages.write_data(run)
        judging.gate_data(run)
        if judging.go_on(run, "data"):
            if _is_loadable(run):
                stages.do_once(run, stages.evaluate_stage(number_of(live)), lambda: evaluate(run, live))
            judging.gate_model(run, first=is_first(run, live))
        report = judging.write_report(run)
    message = f"{report.verdict}: judged by policy {run.policy.name}; nothing was registered"
    return Outcome(message, report.verdict.exit_code, run.folder, stages.summary(run), stages.read_cost(run), report)


def _is_loadable(run: Run) -> bool:
    """Say whether a folder from elsewhere is sound; else it is never loaded, and the integrity gate says why."""
    if run.given is None or run.given.kind == "delta":
        return True
    try:
        sound = examine_folder(run.given.place).sound
    except DataError:
        sound = False
    if not sound:
        _LOG.warning("%s is not loaded; see what the integrity gate says", run.given.source)
    return sound
