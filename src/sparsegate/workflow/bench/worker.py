"""The process of one measurement: a job as JSON on stdin, its figures or its error as JSON on stdout."""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import asdict

from sparsegate.contracts import JSON
from sparsegate.errors import SparsegateError


def answer(job: Mapping[str, JSON]) -> dict[str, JSON]:
    """Measure a job and return ``{"measurement": ...}``, or ``{"error": ...}`` on one line."""
    import torch

    from sparsegate.workflow.bench.measure import Job, measure

    try:
        return {"measurement": asdict(measure(Job(**job)))}
    except SparsegateError as error:
        return {"error": _one_line(error)}
    except torch.OutOfMemoryError as error:
        return {"error": f"out of memory: {_one_line(error)}"}
    except Exception as error:
        traceback.print_exc()
        out_of_memory = isinstance(error, MemoryError) or "can't allocate memory" in str(error)
        kind = "out of memory" if out_of_memory else type(error).__name__
        return {"error": f"{kind}: {_one_line(error)}"}


def _one_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def main() -> None:
    """Answer the job on stdin. Whatever libraries print goes to stderr: stdout is for the answer."""
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        json.dump(answer(json.load(sys.stdin)), out, allow_nan=False)


if __name__ == "__main__":
    main()
