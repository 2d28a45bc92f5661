"""What a retrain would do, found out without doing it: nothing is fetched, written or locked."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path

from sparsegate.config import RunConfig
from sparsegate.contracts import JSON
from sparsegate.errors import ExitCode, NotHereError
from sparsegate.files import read_json
from sparsegate.registry.promotion import version_of_run
from sparsegate.registry.reachability import is_new_store
from sparsegate.registry.versions import live_version
from sparsegate.workflow.champion import first_problem
from sparsegate.workflow.lock import lock_holder
from sparsegate.workflow.retrain import check
from sparsegate.workflow.run import Run, name_run, resolve_base
from sparsegate.workflow.stages import all_stages
from sparsegate.workflow.triggers import find_triggers


@dataclass(frozen=True)
class Plan:
    """What a retrain would do.

    Args:
        message: One line: what it would do, or why nothing.
        exit_code: 0 if it would run, 11 if it would stop for want of a live version, 30 if there is nothing to do.
        name: Registered model.
        champion: Its live version, or None.
        lock: Who holds its lock, or None.
        triggers: Why it would run.
        run_key: Key of the run; None where the base model would first have to be fetched.
        run_dir: The run's folder, or None.
        done: Stages that are done, in order.
        next: Stages that would run, in order.
    """

    message: str
    exit_code: ExitCode
    name: str
    champion: int | None
    lock: str | None
    triggers: tuple[str, ...]
    run_key: str | None
    run_dir: str | None
    done: tuple[str, ...]
    next: tuple[str, ...]

    def to_json(self) -> dict[str, JSON]:
        return {**asdict(self), "exit_code": int(self.exit_code)}

    def render(self) -> str:
        """Return one line for each finding, and the message."""
        rows = {
            "run": self.run_dir or "unknown until the base model is here",
            "champion": f"version {self.champion}" if self.champion else "none",
            "lock": self.lock or "free",
            "triggers": "; ".join(self.triggers),
            "done": ", ".join(self.done) or "nothing",
            "would run": ", ".join(self.next) or "nothing",
        }
        return "\n".join([*(f"{name:<11}{text}" for name, text in rows.items()), "", self.message])


def plan(config: RunConfig, *, first: bool = False) -> Plan:
    """Say what :func:`~sparsegate.workflow.retrain.retrain` would do.

    Args:
        config: The run.
        first: As for a retrain.

    Raises:
        UsageError: With what keeps it from starting.
        RegistryError: If MLflow fails.
    """
    policy, inputs = check(config)
    registry, runs = config.registry, Path(config.output_dir).absolute()
    lock = lock_holder(runs, registry.name)
    champion = live_version(registry.tracking_uri, registry.name, registry.alias)
    start = find_triggers(config, inputs)
    run, message, code = None, "dry run: nothing was done", ExitCode.PASSED
    try:
        run = name_run(config, policy, inputs, resolve_base(config, local_only=True))
    except NotHereError as error:
        message += f"; {error} and would be fetched first"
    outcome = None if run is None else run.folder / "outcome.json"
    if lock is not None:
        message, code = "nothing would be done: another run is at work", ExitCode.NOTHING_TO_DO
    elif start.missing is not None:
        message, code = f"nothing to do: {start.missing}", ExitCode.NOTHING_TO_DO
    elif outcome is not None and outcome.exists():
        message, code = f"nothing to do: this run is complete ({read_json(outcome)['message']})", ExitCode.NOTHING_TO_DO
    elif (problem := first_problem(registry, first=first)) is not None:
        message, code = f"nothing would be done: {problem}", ExitCode.NOT_ENOUGH_EVIDENCE
    stages = _stages(run, config, champion)
    return Plan(
        message=message,
        exit_code=code,
        name=registry.name,
        champion=champion,
        lock=lock,
        triggers=start.triggers,
        run_key=None if run is None else run.manifest.run_key,
        run_dir=None if run is None else str(run.folder),
        done=tuple(name for name, is_done in stages.items() if is_done),
        next=() if code else tuple(name for name, is_done in stages.items() if not is_done),
    )


def _stages(run: Run | None, config: RunConfig, champion: int | None) -> dict[str, bool]:
    """Return the stages in order, each with whether it is done."""
    if run is None:
        return dict.fromkeys((*all_stages(config, champion), "register", "promote"), False)
    registry = run.config.registry
    uri = registry.tracking_uri
    version = None if is_new_store(uri) else version_of_run(uri, registry.name, run.manifest.run_key)
    files = {stage: version is not None or run.ledger.is_done(stage) for stage in all_stages(config, champion)}
    return {**files, "register": version is not None, "promote": version is not None and version == champion}
