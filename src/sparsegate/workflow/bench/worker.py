"""The process of one measurement."""

from __future__ import annotations

from dataclasses import asdict

from sparsegate.contracts import JSON
from sparsegate.workflow.bench.process import serve


def _measure(job: dict[str, JSON]) -> dict[str, JSON]:
    from sparsegate.workflow.bench.measure import Job, measure

    return asdict(measure(Job(**job)))


if __name__ == "__main__":
    serve(_measure)
