"""The inside of a gate's own process: runs one gate and leaves its result as a JSON file.

Started by the runner as ``python -m sparsegate_gates.worker``; the job comes pickled on standard input.
"""

from __future__ import annotations

import json
import pickle
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from sparsegate.contracts import Gate, GateContext, GateResult, Verdict
from sparsegate.errors import MissingEvidenceError
from sparsegate.files import write_text
from sparsegate.parent_process import end_with_parent


def run_gate(name: str, gate: type[Gate], context: GateContext) -> GateResult:
    """Run a gate; whatever goes wrong becomes its result.

    Args:
        name: The gate's name in the policy.
        gate: The gate.
        context: What it judges from.
    """
    started = time.perf_counter()
    try:
        result: Any = gate().run(context)
    except MissingEvidenceError as error:
        return _failed(name, Verdict.INSUFFICIENT, str(error), started)
    except Exception as error:
        _print_traceback()
        return _failed(name, Verdict.ERROR, f"{type(error).__name__}: {error}", started)
    if not isinstance(result, GateResult):
        return _failed(name, Verdict.ERROR, f"the gate returned {type(result).__name__}, not a GateResult", started)
    if result.gate != name:
        return _failed(name, Verdict.ERROR, f"the gate answered for '{result.gate}'", started)
    return replace(result, seconds=time.perf_counter() - started)


def _failed(name: str, verdict: Verdict, reason: str, started: float) -> GateResult:
    return GateResult.single(name, verdict, " ".join(reason.split()), seconds=time.perf_counter() - started)


def _print_traceback() -> None:
    import traceback

    traceback.print_exc()


def main() -> None:
    """Read the job, run the gate, write the result; end if nobody waits for it any more."""
    end_with_parent()
    # the job comes over a pipe from the process that started this one
    name, gate, context, result_path = pickle.load(sys.stdin.buffer)  # noqa: S301
    result = run_gate(name, gate, context)
    try:
        text = json.dumps(result.to_json(), allow_nan=False)
    except (TypeError, ValueError) as error:
        result = GateResult.single(name, Verdict.ERROR, f"the result can't be written as JSON: {error}")
        text = json.dumps(result.to_json(), allow_nan=False)
    write_text(Path(result_path), text)


if __name__ == "__main__":
    main()
