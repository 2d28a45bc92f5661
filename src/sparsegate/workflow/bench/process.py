"""A measurement in a process of its own: its job goes in as JSON on stdin, its answer comes back as JSON on stdout."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from sparsegate.contracts import JSON
from sparsegate.errors import SparsegateError
from sparsegate.parent_process import end_with_parent

Result = TypeVar("Result")
_LOG = logging.getLogger(__name__)
_TRACEBACK_LINES = 20
_KILLED = -9  # SIGKILL, which not every platform names


def worker_command(module: str) -> tuple[str, ...]:
    """Return the command that runs a module as a worker."""
    # -P: a file in the working folder must not stand in for a library
    return (sys.executable, "-P", "-m", module)


def ask(job: Mapping[str, JSON], *, worker: Sequence[str], read: Callable[[dict[str, JSON]], Result]) -> Result | str:
    """Give a job to a process of its own.

    Args:
        job: JSON values only; ``threads`` is the number of processor threads that the process may use.
        worker: Command that reads the job and writes the answer.
        read: Makes the result from the figures in the answer.

    Returns:
        The result, or why there is none, on one line.
    """
    threads = str(job["threads"])
    environment = {
        **os.environ,
        **dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), threads),
        "HF_HUB_OFFLINE": "1",  # the model is here already
        "TOKENIZERS_PARALLELISM": "false",
    }
    ended = subprocess.run(
        worker, input=json.dumps(dict(job)), capture_output=True, text=True, encoding="utf-8", env=environment
    )
    try:
        answer = json.loads(ended.stdout)
        if "error" not in answer:
            return read(answer["measurement"])
    except (ValueError, KeyError, TypeError):
        return _died(ended)
    if "Traceback" in ended.stderr:
        _LOG.info("%s", "\n".join(ended.stderr.splitlines()[-_TRACEBACK_LINES:]))
    return str(answer["error"])


def _died(ended: subprocess.CompletedProcess[str]) -> str:
    if ended.returncode == _KILLED:
        return "the process was killed, most likely for want of memory"
    lines = ended.stderr.strip().splitlines()
    return f"the process ended with code {ended.returncode} and no figures: {lines[-1] if lines else 'no message'}"


# --- in that process ----------------------------------------------------------------------------


def serve(measure: Callable[[dict[str, JSON]], dict[str, JSON]]) -> None:
    """Answer the job on stdin, while somebody waits for it.

    Whatever libraries print goes to stderr: stdout is for the answer.
    """
    end_with_parent()
    with os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8") as out:
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        json.dump(_answer(json.load(sys.stdin), measure), out, allow_nan=False)


def _answer(job: dict[str, JSON], measure: Callable[[dict[str, JSON]], dict[str, JSON]]) -> dict[str, JSON]:
    """Measure a job and return ``{"measurement": ...}``, or ``{"error": ...}`` on one line."""
    import torch

    try:
        return {"measurement": measure(job)}
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
