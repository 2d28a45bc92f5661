"""Hold the memory model against a benchmark: python tests/benchmarks/memory_model.py BENCH.json [BENCH.json ...]

BENCH.json is what ``sparsegate bench --json BENCH.json`` wrote on a CPU. Ends with 1 if an arm is off by 15% or more.
Methods that have no memory model are listed without a figure.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig

from sparsegate.errors import UsageError
from sparsegate.sparse.cost_model import BatchShape
from sparsegate.workflow.bench.base import RANDOM_MODELS, find_base
from sparsegate.workflow.pilot.projection import CPU_PROCESS, estimate_memory

GOAL = 0.15


def errors(bench):
    """Return for each measured method its measured and its predicted peak in bytes, None where there is no model."""
    work = bench["work"]
    assert work["device"] == "cpu", "the overhead on a GPU has not been measured"
    model = empty_model(work["model"], work["dtype"])
    batch = BatchShape(work["batch_size"], work["tokens"], work["batch_size"] * work["supervised"], padded=False)
    found = {}
    for row in bench["rows"]:
        if row["error"] is None:
            try:
                predicted = estimate_memory(model, row["method"], batch, overhead=CPU_PROCESS).total
            except UsageError:
                predicted = None
            found[row["method"]] = (row["peak_memory_bytes"], predicted)
    return found


def empty_model(source, dtype):
    """Return the benchmark's model without data."""
    found, _ = find_base(source)
    name = found.removeprefix("random:")
    config = LlamaConfig(**RANDOM_MODELS[name]) if name in RANDOM_MODELS else AutoConfig.from_pretrained(found)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))


def main(paths):
    worst = 0.0
    for path in paths:
        bench = json.loads(Path(path).read_text())
        work = bench["work"]
        sys.stdout.write(f"{work['model']}, {work['dtype']}, batch {work['batch_size']} x {work['tokens']}\n")
        sys.stdout.write(f"  {'method':<52}{'measured MB':>12}{'predicted MB':>14}{'error':>8}\n")
        for method, (measured, predicted) in errors(bench).items():
            if predicted is None:
                sys.stdout.write(f"  {method:<52}{measured / 1e6:>12,.0f}{'no model':>14}\n")
                continue
            error = predicted / measured - 1
            worst = max(worst, abs(error))
            sys.stdout.write(f"  {method:<52}{measured / 1e6:>12,.0f}{predicted / 1e6:>14,.0f}{error:>8.1%}\n")
    sys.stdout.write(f"largest error {worst:.1%}, goal under {GOAL:.0%}\n")
    return int(worst >= GOAL)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
