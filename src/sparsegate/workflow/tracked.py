"""What MLflow keeps of a run: one run of its own for all its attempts, with parameters, figures and reports."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from sparsegate.files import read_json, write_json
from sparsegate.registry.promotion import RUN_KEY_TAG
from sparsegate.registry.tracking import (
    describe_run,
    end_run,
    ended_by_errors,
    log_folder,
    log_metrics,
    log_params,
    open_run,
    set_tags,
)
from sparsegate.reports.markdown import to_markdown
from sparsegate.reports.model import GateReport
from sparsegate.workflow import stages
from sparsegate.workflow.run import Run, flat_params


@contextmanager
def tracked(run: Run) -> Iterator[str]:
    """Keep one MLflow run for the whole of a run, taken up again after a kill."""
    registry, path = run.config.registry, run.folder / "mlflow_run.json"
    uri = registry.tracking_uri
    known = read_json(path)["run_id"] if path.exists() else None
    tags = {
        RUN_KEY_TAG: run.manifest.run_key,
        "sparsegate.version": run.manifest.code_version,
        "sparsegate.triggers": "; ".join(run.manifest.triggers),
        "mlflow.user": run.manifest.author,
        **stages.attempt_tags(run),
    }
    name = "-".join(filter(None, (registry.name, run.config.slot, run.manifest.run_key[:8])))
    run_id = open_run(uri, registry.experiment, run_name=name, tags=tags, run_id=known, once_by=RUN_KEY_TAG)
    if known is None:
        log_params(uri, run_id, flat_params(run.config))
        write_json(path, {"run_id": run_id})
    _beat(uri, run_id)
    with ended_by_errors(uri, run_id):
        yield run_id
    _beat(uri, run_id)
    end_run(uri, run_id, "FINISHED")


def _beat(uri: str, run_id: str) -> None:
    """Log when the run was last alive, for alarms that look at MLflow alone."""
    now_s = time.time()
    log_metrics(uri, run_id, {"heartbeat_unix_s": now_s}, step=int(now_s))


def log_results(run: Run, run_id: str, report: GateReport) -> None:
    """Log the figures, the verdict, the reports and what the gates wrote."""
    uri = run.config.registry.tracking_uri
    figures = {f"{role}_{name}": value for role, row in stages.summary(run).items() for name, value in row.items()}
    cost = stages.read_cost(run)
    if cost is not None:
        names = ("train_seconds", "tokens_per_second", "peak_memory_bytes", "trainable_parameters", "artifact_bytes")
        figures |= {name: float(getattr(cost, name)) for name in names}
    log_metrics(uri, run_id, figures)
    set_tags(uri, run_id, {"sparsegate.verdict": str(report.verdict)})
    describe_run(uri, run_id, to_markdown(report))
    log_folder(uri, run_id, run.report_dir, "report")
    log_folder(uri, run_id, run.gates_dir, "gates")
