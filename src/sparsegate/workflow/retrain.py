"""The whole path: validate, train, evaluate, gate, register, promote; and each part of it on its own."""

from __future__ import annotations

import logging
from pathlib import Path

from sparsegate.config import RegistryConfig, RunConfig, TrainingConfig
from sparsegate.contracts import Verdict
from sparsegate.errors import ExitCode, MissingEvidenceError, NothingToDoError, UsageError
from sparsegate.files import read_json, remove_leftovers, write_json
from sparsegate.registry.promotion import Champion, check_model_name
from sparsegate.registry.tracking import check_tracking, lightning_logger
from sparsegate.reports.model import GateReport
from sparsegate.reports.wording import told
from sparsegate.sparse.selectors import make_selector
from sparsegate.workflow import judging, stages
from sparsegate.workflow.anchor import check_anchor
from sparsegate.workflow.champion import find_champion, first_problem, is_first, locked, number_of
from sparsegate.workflow.devices import check_accelerator, check_device
from sparsegate.workflow.evaluate import evaluate, evaluate_answers
from sparsegate.workflow.heartbeat import beating
from sparsegate.workflow.identity import signing_key
from sparsegate.workflow.inputs import Inputs, check_writable, load_inputs
from sparsegate.workflow.lock import registry_lock
from sparsegate.workflow.outcome import Outcome
from sparsegate.workflow.run import Run, name_run, open_run, reopen_run, resolve_base
from sparsegate.workflow.tracked import log_results, tracked
from sparsegate.workflow.triggers import find_triggers
from sparsegate_gates.policy import Policy, load_policy

_LOG = logging.getLogger(__name__)


def check(config: RunConfig) -> tuple[Policy, Inputs]:
    """Check everything that can be checked without the base model; nothing is written.

    Raises:
        UsageError: With what is wrong and how to mend it.
    """
    _check_training(config.training)
    policy = load_policy(config.policy)
    check_model_name(config.registry.name)
    signing_key(config.registry)
    inputs = load_inputs(config)
    check_writable(Path(config.output_dir))
    check_tracking(config.registry.tracking_uri)
    check_anchor(config.registry)
    return policy, inputs


def _check_training(training: TrainingConfig) -> None:
    """Refuse an unknown selector, and what training can do and the rest of the path can't."""
    if training.selector is not None:
        make_selector(training.selector)
    if training.devices > 1:
        raise UsageError(
            f"training.devices must be 1, got {training.devices}: this command would be started again for each device;"
            " call sparsegate.training.run.train from a Python script to train on several"
        )
    if training.precision == "bf16-true":
        raise UsageError(
            "training.precision bf16-true gives a delta for bf16 weights, and here the base is judged and served in"
            " fp32; use bf16-mixed"
        )


def retrain(config: RunConfig, *, first: bool = False) -> Outcome:
    """Run the whole path. The same inputs again are a no-op; a killed run goes on where it was.

    Args:
        config: The run.
        first: The model has no version yet, and that is right: it may be held against the base alone.

    Raises:
        LockedError: If another run of this model is at work.
        MissingEvidenceError: If the model has no version, and it isn't said that this is right.
        NothingToDoError: If the run is complete, or what should start it did not happen.
        SparsegateError: For everything that ends the run.
    """
    policy, inputs = check(config)
    _check_devices(config)
    start = find_triggers(config, inputs)
    if start.missing is None:  # before anything is fetched, locked or made: it may be a wrong URI
        _check_first(config.registry, first)
    base = resolve_base(config)

    def work() -> Outcome:
        if start.missing is not None:
            raise NothingToDoError(f"nothing to do: {start.missing}")
        run = open_run(config, policy, inputs, base, triggers=start.triggers)
        _refuse_complete(run)
        remove_leftovers(run.folder)
        with tracked(run) as run_id:
            made = stages.registered_version(run)
            outcome = _whole_path(run, run_id) if made is None else _take_up(run, made)
        return _keep(run, outcome)

    with registry_lock(Path(config.output_dir).absolute(), config.registry):
        return beating(config, work)


def train(config: RunConfig) -> Outcome:
    """Validate the data and train; nothing is judged or registered. :func:`retrain` goes on from there."""
    policy, inputs = check(config)
    _check_devices(config)
    run = open_run(config, policy, inputs, resolve_base(config), triggers=find_triggers(config, inputs).triggers)
    with locked(run), tracked(run) as run_id:
        _data_stages(run)
        if not judging.go_on(run, "data"):
            report = judging.write_report(run)
            return Outcome("refused: the data did not pass", report.verdict.exit_code, run.folder, {}, None, report)
        _train(run, run_id)
    return Outcome(f"trained: {run.delta}", ExitCode.PASSED, run.folder, {}, stages.read_cost(run))


def find_learning_rate(config: RunConfig) -> Outcome:
    """Suggest a learning rate by a range test. Only a JSON file beside the run's folder is written."""
    policy, inputs = check(config)
    check_accelerator(config.training.accelerator)
    run = name_run(config, policy, inputs, resolve_base(config))
    path = run.folder.with_name(f"{run.folder.name}.learning_rate.json")
    found = stages.rate_test(run, path)
    message = (
        f"learning rate: {found.suggested:.2g} by the range test, {found.default:.2g} by default (density "
        f"{found.density:.3g}, layers from {found.first_layer}); nothing was trained, see {path}. To train with the "
        f"former, add --training.learning_rate {found.suggested:.2g}"
    )
    return Outcome(message, ExitCode.PASSED, run.folder, {})


def register(folder: Path, *, first: bool = False) -> Outcome:
    """Register and promote a run's candidate that has passed its own policy.

    Args:
        folder: Folder of a judged run.
        first: As for :func:`retrain`.
    """
    run = reopen_run(folder)
    if not (run.report_dir / "report.json").exists():
        raise UsageError(f"{folder} was not judged yet; run 'sparsegate gate {folder}' first")
    check_tracking(run.config.registry.tracking_uri)
    with locked(run):
        made = stages.registered_version(run)
        if made is not None:
            with tracked(run):
                outcome = _take_up(run, made)
            return _keep(run, outcome)
        _check_first(run.config.registry, first)
        report, live = judging.read_report(run), find_champion(run)
        if not report.verdict.releases:
            return _keep(run, _finish(run, report, number_of(live), None))
        if not run.ledger.is_done(stages.evaluate_stage(number_of(live))):
            raise UsageError(f"the champion changed since {folder} was judged; run 'sparsegate gate {folder}' again")
        with tracked(run) as run_id:
            log_results(run, run_id, report)
            outcome = _register(run, report, run_id, live)
        return _keep(run, outcome)


# --- parts --------------------------------------------------------------------------------------


def _check_devices(config: RunConfig) -> None:
    check_accelerator(config.training.accelerator)
    check_device(config.evaluation.device, field="evaluation.device")


def _check_first(registry: RegistryConfig, first: bool) -> None:
    problem = first_problem(registry, first=first)
    if problem is not None:
        raise MissingEvidenceError(problem)


def _whole_path(run: Run, run_id: str) -> Outcome:
    live = find_champion(run)
    _data_stages(run)
    if judging.go_on(run, "data"):
        _train(run, run_id)
        _judge(run, live)
    report = judging.write_report(run)
    log_results(run, run_id, report)
    if report.verdict.releases:
        return _register(run, report, run_id, live)
    if report.verdict is Verdict.ERROR:
        _forget_gates(run, live)
    return _finish(run, report, number_of(live), None)


def _take_up(run: Run, version: int) -> Outcome:
    """Go on with a run that was killed after its version was registered: only the promotion may be left to do."""
    _LOG.info("version %d was registered before", version)
    return _promote(run, version)


def _data_stages(run: Run) -> None:
    stages.do_once(run, "data", lambda: stages.write_data(run))
    stages.do_once(run, "gate data", lambda: judging.gate_data(run))


def _train(run: Run, run_id: str) -> None:
    registry = run.config.registry
    logger = lightning_logger(registry.tracking_uri, registry.experiment, run_id)
    stages.do_once(run, "train", lambda: stages.train_candidate(run, logger=logger))


def _judge(run: Run, live: Champion | None) -> None:
    early, champion = run.config.evaluation.stop_early, number_of(live)
    if early:
        answers, gate_answers = stages.EARLY_STAGES
        stages.do_once(run, answers, lambda: evaluate_answers(run))
        stages.do_once(run, gate_answers, lambda: judging.gate_answers(run))
        if not judging.go_on(run, "answers"):
            return
    first = is_first(run, live)
    stages.do_once(run, stages.evaluate_stage(champion), lambda: evaluate(run, live))
    stages.do_once(run, stages.gate_stage(champion), lambda: judging.gate_model(run, first=first, early=early))


def _forget_gates(run: Run, live: Champion | None) -> None:
    """An error is worth a retry: the next run asks the gates again."""
    run.ledger.forget("gate data")
    run.ledger.forget(stages.EARLY_STAGES[-1])
    run.ledger.forget(stages.gate_stage(number_of(live)))


def _register(run: Run, report: GateReport, run_id: str, live: Champion | None) -> Outcome:
    _LOG.info("register")
    version = stages.register_candidate(run, report, number_of(live), run_id=run_id)
    return _promote(run, version)


def _promote(run: Run, version: int) -> Outcome:
    _LOG.info("promote version %d", version)
    evidence = stages.promote_version(run, version)
    return _finish(run, GateReport.from_json(evidence["report"]), evidence["champion"], version)


def _finish(run: Run, report: GateReport, live: int | None, version: int | None) -> Outcome:
    """Return what a run ends with.

    Args:
        run: The run.
        report: What the gates said.
        live: The champion that it was judged against.
        version: What it was registered as.
    """
    registry = run.config.registry
    if version is not None:
        replaced = f", in place of version {live}" if live is not None else ""
        waived = [result.gate for result in report.results if result.verdict is Verdict.WAIVED]
        but = f"; waived: {', '.join(waived)}" if waived else ""
        message = f"registered: {registry.name} version {version} is now {registry.alias}{replaced}{but}"
    else:
        decided = next((result for result in report.results if result.verdict is report.verdict), None)
        reason = told(decided) if decided else "; ".join(report.problems)
        kept = f"version {live} stays {registry.alias}" if live is not None else "nothing was registered"
        message = f"refused, {kept}: {reason}"
        if run.delta.is_file() and not all(result.was_run for result in report.results):
            message += f"; 'sparsegate gate {run.folder}' asks the gates that were not run"
    exit_code = report.verdict.exit_code
    return Outcome(message, exit_code, run.folder, stages.summary(run), stages.read_cost(run), report, version)


def _keep(run: Run, outcome: Outcome) -> Outcome:
    """Record, as the very last, that the run is complete; an error is worth a retry and completes nothing."""
    if outcome.exit_code is not ExitCode.ERROR:
        write_json(run.folder / "outcome.json", outcome.to_json())
    return outcome


def _refuse_complete(run: Run) -> None:
    path = run.folder / "outcome.json"
    if path.exists():
        raise NothingToDoError(
            f"nothing to do: this run is complete ({read_json(path)['message']}); see {run.folder}. "
            "Change data, configuration or --slot to run again"
        )
