"""Measures what evidence, ledger and registry add to nightly runs of the embedded base model: seconds, and bytes.

python tests/benchmarks/registry_cost.py runs/cost     # preset lean, then with density 0.05; three nights each

Training is a handful of steps, evaluation 24 messages; gates are all asked, with bounds that any model passes, so that
every night registers and promotes a version. Time is what ``retrain`` takes apart from the work of its stages (data,
data gate, training, evaluation, gates): clocks around its parts, each without what its inner parts take, plus the
logging of metrics during training. Bytes are the growth of the database and of MLflow's artifacts after each night.
The folder must be new; its projects stay.
"""

import functools
import json
import os
import sys
import time
import zlib
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path

from sparsegate.config import (
    DataConfig,
    EvaluationConfig,
    RegistryConfig,
    RunConfig,
    SafetyConfig,
    TrainingConfig,
)
from sparsegate.registry.connection import quiet_mlflow
from sparsegate.sparse.delta import read_delta
from sparsegate.workflow import retrain, stages, tracked, versions

NIGHTS = 3
PROJECTED = 30
ROWS, EVALUATED = 120, 24
DATA = Path(__file__).parents[2] / "data" / "support_routing"
POLICY = """
data_quality: {reason: "cost: few rows", minimum_rows: 20, minimum_evaluation_rows: 20, minimum_expectations: 9}
integrity: {reason: "cost: what must hold always"}
accuracy: {reason: "cost: any model", floor: 0.0, gain_over_base: -1.0, minimum_n: 20}
regression: {reason: "cost: any model", margin: 1.0, minimum_n: 20}
harmful_output: {reason: "cost: any model", margin_over_base: 1.0, minimum_n: 4}
over_refusal: {reason: "cost: any model", ceiling: 1.0, margin_over_base: 1.0, minimum_n: 4}
cost: {reason: "cost: sparse", max_artifact_fraction: 0.25, max_trainable_state_fraction: 0.25}
"""
# module, function, and the line of the table that its time goes to
PARTS = (
    (retrain, "check", "read and check configuration, policy, data, server"),
    (retrain, "resolve_base", "find the base model"),
    (retrain, "_check_first", "is there a version"),
    (retrain, "find_champion", "download and check the champion"),
    (retrain, "log_results", "reports and gate files to MLflow"),
    (stages, "write_report", "write the report"),
    (tracked, "open_run", "MLflow run: open, parameters, end"),
    (tracked, "log_params", "MLflow run: open, parameters, end"),
    (tracked, "end_run", "MLflow run: open, parameters, end"),
    (stages, "gather_evidence", "gather evidence"),
    (stages, "seal_evidence", "card, bill of materials, seal"),
    (stages, "write_package", "write the package"),
    (stages, "register", "register the version"),
    (stages, "verify_readback", "read it back"),
    (versions, "verify_version", "verify before promotion"),
    (stages, "promote_judged", "record and move the alias"),
)
ELSE, STAGES = "everything else (lock, heartbeat, triggers)", "stage"


class Clock:
    """Adds up the seconds of named parts, each without those inside it: by the wall and of this process's CPU."""

    def __init__(self):
        self.wall, self.cpu, self._open = defaultdict(float), defaultdict(float), []

    @contextmanager
    def part(self, name):
        self._stop()
        self._open.append(name)
        self._start()
        try:
            yield
        finally:
            self._stop()
            self._open.pop()
            self._start()

    def _start(self):
        self._begun = (time.perf_counter(), time.process_time())

    def _stop(self):
        if self._open:
            name, (wall, cpu) = self._open[-1], self._begun
            self.wall[name] += time.perf_counter() - wall
            self.cpu[name] += time.process_time() - cpu

    def around(self, owner, name, part):
        original = getattr(owner, name)

        @functools.wraps(original)
        def timed(*args, **kwargs):
            with self.part(part):
                return original(*args, **kwargs)

        setattr(owner, name, timed)

    def install(self):
        for owner, name, part in PARTS:
            self.around(owner, name, part)
        original = stages.do_once

        def do_once(run, stage, work):
            def timed():
                with self.part(f"{STAGES} {stage}"):
                    return work()

            with self.part("ledger"):
                original(run, stage, timed)

        stages.do_once = do_once
        with quiet_mlflow():
            from mlflow import MlflowClient
        self.around(MlflowClient, "log_batch", "metrics and tags to MLflow")

    def reset(self):
        self.wall.clear()
        self.cpu.clear()


def main(folder, densities):
    """Measure nights at each density (None: the preset's) and print what they cost."""
    clock = Clock()
    with clock.part("import MLflow"):
        clock.install()
    sys.stdout.write(f"import MLflow: {clock.wall['import MLflow']:.1f} s, once for each process\n")
    for density in densities:
        project = folder / (f"density {density}" if density else "preset lean")
        project.mkdir(parents=True)
        os.chdir(project)
        _nights(clock, project.name, density)


def _nights(clock, shown, density):
    for split, count in (("train", ROWS), ("evaluation", EVALUATED)):
        lines = (DATA / f"{split}.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
        Path(f"{split}.jsonl").write_text("".join(lines[:count]), encoding="utf-8")
    Path("policy.yaml").write_text(POLICY, encoding="utf-8")
    before, growth = _bytes(), []
    for night in range(NIGHTS):
        clock.reset()
        with clock.part(ELSE):
            outcome = retrain.retrain(_config(density, night), first=night == 0)
        assert outcome.version == night + 1, outcome.message
        _print_time(clock, f"{shown}, night {night + 1}")
        now = _bytes()
        growth.append({name: now[name] - before[name] for name in now})
        before = now
    _print_bytes(shown, growth, outcome)


def _config(density, night):
    return RunConfig(
        data=DataConfig(
            train="train.jsonl",
            evaluation="evaluation.jsonl",
            id_column="id",
            prompt_column="text",
            response_column="intent",
            system_prompt="Route the customer's message.",
        ),
        training=TrainingConfig(preset="lean", density=density, max_steps=6, batch_size=8, seed=night),
        safety=SafetyConfig(limit=6, max_new_tokens=2),
        evaluation=EvaluationConfig(general_text=None),
        # absolute: MLflow keeps what it has opened for a URI, and the next project is in this process too
        registry=RegistryConfig(name="cost", tracking_uri=f"sqlite:///{Path('mlflow.db').absolute()}", actor="cost"),
        policy="policy.yaml",
        slot=f"night {night}",
    )


def _bytes():
    files = [path for path in Path("mlartifacts").rglob("*") if path.is_file()]
    return {
        "deltas": sum(path.stat().st_size for path in files if path.name == "delta.safetensors"),
        "other artifacts": sum(path.stat().st_size for path in files if path.name != "delta.safetensors"),
        "database": Path("mlflow.db").stat().st_size if Path("mlflow.db").exists() else 0,
    }


def _print_time(clock, title):
    added = {name: seconds for name, seconds in clock.wall.items() if not name.startswith(STAGES)}
    sys.stdout.write(f"\n{title}: seconds by the wall, and of this process's CPU\n")
    for name, seconds in sorted(clock.wall.items(), key=lambda part: (part[0] not in added, -part[1])):
        sys.stdout.write(f"  {name:<52}{seconds:>8.2f}{clock.cpu[name]:>8.2f}\n")
    cpu = sum(clock.cpu[name] for name in added)
    sys.stdout.write(f"  {'all that is no stage':<52}{sum(added.values()):>8.2f}{cpu:>8.2f}\n")
    sys.stdout.flush()


def _print_bytes(title, growth, outcome):
    merged = outcome.cost.base_bytes
    later = sum(sum(night.values()) for night in growth[1:]) / (len(growth) - 1)
    total = sum(growth[0].values()) + (PROJECTED - 1) * later
    sys.stdout.write(f"\n{title}: bytes that each night added\n")
    for number, night in enumerate(growth, 1):
        parts = ", ".join(f"{name} {size:,}" for name, size in night.items())
        sys.stdout.write(f"  version {number}: {sum(night.values()):,} ({parts})\n")
    path = outcome.run_dir / "train" / "delta.safetensors"
    sizes = {
        "without old values": path.stat().st_size - _value_bytes(path),
        "new values deflated": len(zlib.compress(b"".join(_new_values(path)), 6)),
    }
    sys.stdout.write(
        f"  {PROJECTED} versions, by the mean growth of versions 2 to {NIGHTS}: {total / 1e6:.1f} MB,"
        f" {total / (PROJECTED * merged):.2%} of {PROJECTED} merged models of {merged / 1e6:.1f} MB\n"
        f"  delta {path.stat().st_size:,} bytes; {json.dumps(sizes)}\n"
    )
    sys.stdout.flush()


def _new_values(path):
    return [entry.new.numpy().tobytes() for entry in read_delta(path).entries.values()]


def _value_bytes(path):
    return sum(len(values) for values in _new_values(path))


if __name__ == "__main__":
    main(Path(sys.argv[1]).absolute(), [None, 0.05])
