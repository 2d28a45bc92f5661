"""The process of one run."""

from __future__ import annotations

from dataclasses import asdict

from sparsegate.contracts import JSON
from sparsegate.workflow.bench.process import serve


def _measure(job: dict[str, JSON]) -> dict[str, JSON]:
    from sparsegate.workflow.bench.quality.job import QualityJob
    from sparsegate.workflow.bench.quality.train import run_job

    return asdict(run_job(QualityJob.from_json(job)))


if __name__ == "__main__":
    serve(_measure)
