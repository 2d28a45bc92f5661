"""What MLflow keeps of a pilot: one run, and under it one for each arm."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from sparsegate import __version__
from sparsegate.registry.tracking import (
    end_run,
    ended_by_errors,
    log_folder,
    log_metrics,
    log_params,
    open_run,
    set_tags,
)
from sparsegate.reports.pilot import PilotResult
from sparsegate.reports.pilot_arm import ArmResult
from sparsegate.workflow.pilot.config import PilotConfig

_KEY_TAG = "sparsegate.pilot_key"
_ARM_TAG = "sparsegate.pilot_arm"
_PARENT_TAG = "mlflow.parentRunId"  # MLflow's own name for nesting


@contextmanager
def tracked_pilot(config: PilotConfig, key: str) -> Iterator[str]:
    """Keep one MLflow run for the whole of a pilot, taken up again after a kill; it is known by the pilot's key."""
    uri = config.tracking_uri
    tags = {_KEY_TAG: key, "sparsegate.version": __version__}
    run_id = open_run(uri, config.experiment, run_name=f"pilot-{config.name}", tags=tags, once_by=_KEY_TAG)
    with ended_by_errors(uri, run_id):
        yield run_id
    end_run(uri, run_id, "FINISHED")


def log_pilot(config: PilotConfig, key: str, parent: str, result: PilotResult, files: Sequence[Path]) -> None:
    """Log the answer, the reports, and a nested run for each arm.

    Args:
        config: The pilot.
        key: Its key.
        parent: Its run.
        result: What it found.
        files: Its reports.

    Raises:
        RegistryError: If MLflow fails.
    """
    uri, chosen = config.tracking_uri, result.recommended
    set_tags(uri, parent, {"sparsegate.verdict": result.verdict.value, "sparsegate.arm": chosen.name if chosen else ""})
    log_metrics(uri, parent, {"wall_seconds": result.wall_seconds})
    with tempfile.TemporaryDirectory(prefix="sparsegate-pilot-") as folder:
        for file in files:
            shutil.copy(file, folder)
        log_folder(uri, parent, Path(folder), "report")
    for arm in result.arms:
        tags = {_ARM_TAG: f"{key}/{arm.name}", _PARENT_TAG: parent, "sparsegate.state": arm.state}
        if arm.verdict is not None:
            tags["sparsegate.verdict"] = arm.verdict.value
        run_id = open_run(uri, config.experiment, run_name=arm.name, tags=tags, once_by=_ARM_TAG)
        _log_arm(uri, run_id, arm)
        end_run(uri, run_id, "FAILED" if arm.state == "failed" else "FINISHED")


def _log_arm(uri: str, run_id: str, arm: ArmResult) -> None:
    params = {"method": arm.method, "density": arm.density, "cut": arm.cut}
    log_params(uri, run_id, {name: value for name, value in params.items() if value is not None})
    for point in arm.points:  # a size is MLflow's step, so that its plots show the learning curve
        figures = {
            "accuracy": point.accuracy.mean,
            "train_seconds": point.seconds,
            "peak_memory_bytes": float(point.peak_memory_bytes),
        }
        if point.energy_joules is not None:
            figures["energy_joules"] = point.energy_joules
        log_metrics(uri, run_id, figures, step=point.size)
    rates = {f"{rate.fault}_rate": rate.count / rate.n for rate in arm.safety if not rate.category}
    others = {
        "learning_rate": arm.learning_rate,
        "tokens_per_second": arm.tokens_per_second,
        "trained_parameters": arm.trained_parameters,
        "artifact_bytes": arm.artifact_bytes,
        "forgetting": arm.forgetting.mean if arm.forgetting else None,
        **rates,
    }
    log_metrics(uri, run_id, {name: float(value) for name, value in others.items() if value is not None})
