"""A project with a tiny model whose retrains are killed, cut off and raced; and what must hold afterwards."""

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import yaml

sys.path.append(str(Path(__file__).parents[1]))

from byte_model import write_byte_model

from sparsegate.registry.connection import connect

POLICY = """
regression: {reason: "test: the path is tested, not the model", margin: 1.0, minimum_n: 8}
"""
# what time and chance write into, apart from the run's decision
_MEASURED = ("cost", "gates/", "report/", "package/")


class Processes:
    """Starts commands in forked processes; see ``processes.py``.

    Args:
        folder: Gets the base model, and a database without runs.
    """

    def __init__(self, folder):
        self.folder = folder
        write_byte_model(folder / "tiny", num_layers=2)
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "MLFLOW_DISABLE_TELEMETRY": "true",
            "MLFLOW_LOGGING_LEVEL": "ERROR",
            "HF_HUB_OFFLINE": "1",
        }
        environment.pop("SPARSEGATE_SIGNING_KEY", None)
        self._server = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("processes.py")), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )

    def run(self, jobs):
        """Run jobs at once; return their exit codes."""
        self._server.stdin.write(json.dumps(jobs) + "\n")
        self._server.stdin.flush()
        line = self._server.stdout.readline()
        assert line, "the process that starts the others has died; see stderr"
        return json.loads(line)

    def close(self):
        self._server.stdin.close()
        self._server.stdout.close()
        self._server.wait()


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code (negative: a signal), its JSON result, and what it said on stderr."""

    code: int
    result: dict | None
    said: str


@dataclass(frozen=True)
class Project:
    """A folder in which retrains run.

    Args:
        folder: The folder.
        processes: Where commands are started.
        tracking_uri: Where runs are tracked.
        environment: Further environment of the commands.
        name: Name of the registered model and of the experiment.
    """

    folder: Path
    processes: Processes
    tracking_uri: str = "sqlite:///mlflow.db"
    environment: tuple[tuple[str, str], ...] = ()
    name: str = "desk"

    def __post_init__(self):
        self.folder.mkdir()
        assert self.processes.run([]) == []  # the database is there
        shutil.copyfile(self.processes.folder / "empty.db", self.folder / "mlflow.db")
        (self.folder / "policy.yaml").write_text(POLICY, encoding="utf-8")
        self._write("evaluation.jsonl", _rows(12, start=900))
        self._write("train.jsonl", _rows(24, start=0))

    def _write(self, name, rows):
        (self.folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")

    def job(self, slot, *, stop_at=None, how="kill", trace=None, number=0):
        config = {
            "model": {"source": str(self.processes.folder / "tiny"), "cache_dir": "cache"},
            "data": {"train": "train.jsonl", "evaluation": "evaluation.jsonl", "id_column": "id", "max_tokens": 96},
            "safety": {"limit": 2, "max_new_tokens": 2},
            "training": {
                "max_steps": 6,
                "batch_size": 4,
                "density": 0.2,
                "frozen_depth": 0,
                "calibration_batches": 1,
                "checkpoint_every_steps": 2,
                "learning_rate": 1e-2,
            },
            "registry": {
                "name": self.name,
                "experiment": self.name,
                "tracking_uri": self.tracking_uri,
                "actor": "night",
            },
            "policy": "policy.yaml",
        }
        (self.folder / "run.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        return {
            "folder": str(self.folder),
            "arguments": ["retrain", "--config", "run.yaml", "--first", "--slot", slot, "--json"],
            "environment": dict(self.environment),
            "stop_at": stop_at,
            "how": how,
            "trace": str(trace) if trace else None,
            "out": str(self.folder / f"out{number}.txt"),
            "err": str(self.folder / f"err{number}.txt"),
        }

    def retrain(self, slot, **job):
        return self.all_at_once([self.job(slot, **job)])[0]

    def all_at_once(self, jobs):
        """Run jobs at once; return how each ended."""
        codes = self.processes.run(jobs)
        return [self._ended(code, job) for code, job in zip(codes, jobs, strict=True)]

    def _ended(self, code, job):
        out, said = (Path(job[name]).read_text(encoding="utf-8") for name in ("out", "err"))
        assert "Traceback" not in said, said
        return Ended(code, json.loads(out) if out.strip() and code >= 0 else None, said)

    @property
    def registry_uri(self):
        return self.tracking_uri.replace("sqlite:///", f"sqlite:///{self.folder}/")

    def client(self):
        return connect(self.registry_uri)

    def history(self):
        """Return what ``sparsegate history`` shows."""
        return self.sparsegate("history", self.name)["rows"]

    def sparsegate(self, *arguments):
        """Run another verb, which must succeed; return its result."""
        ended = self.sparsegate_anyhow(*arguments, "--tracking_uri", self.tracking_uri, "--json")
        assert ended.code == 0, ended
        return ended.result

    def sparsegate_anyhow(self, *arguments):
        """Run another verb; return how it ended."""
        return self.all_at_once([{**self.job(""), "arguments": list(arguments)}])[0]

    def stages(self):
        """Return, for each run, the stages in its ledger with the digests that chance leaves alone."""
        ledgers = sorted((self.folder / "runs").glob("*/ledger.json"))
        return [
            {
                stage: {name: digest for name, digest in files.items() if not _is_measured(name)}
                for stage, files in json.loads(path.read_text())["stages"].items()
            }
            for path in ledgers
        ]

    def leftovers(self):
        """Return files that a killed writer left in the folders that stages hand over."""
        return list((self.folder / "runs").glob("*/*/**/.*"))

    def state(self):
        """Return everything that must be the same whether or not a process died on the way."""
        client = self.client()
        experiment = client.get_experiment_by_name(self.name)
        runs = client.search_runs([experiment.experiment_id])
        versions = client.search_model_versions(f"name = '{self.name}'")
        outcomes = sorted((self.folder / "runs").glob("*/outcome.json"))
        return {
            "versions": sorted((int(v.version), v.status, v.tags["sparsegate.run_key"]) for v in versions),
            "aliases": self.aliases() if versions else {},
            "runs": sorted((run.data.tags["sparsegate.run_key"], run.info.status) for run in runs),
            "params": sorted(sorted(run.data.params.items()) for run in runs),
            "moves": [[(e["verb"], e["from"], e["to"]) for e in row["events"]] for row in self.history()],
            "outcomes": [json.loads(path.read_text())["message"] for path in outcomes],
            "ledgers": self.stages(),
            "leftovers": self.leftovers(),
        }

    def aliases(self):
        aliases = self.client().get_registered_model(self.name).aliases
        return {alias: int(number) for alias, number in aliases.items()}  # a server gives texts

    def verify(self):
        """Check the champion's evidence from the registry's bytes."""
        return self.sparsegate("verify", f"models:/{self.name}@champion")


def _is_measured(name):
    return any(part in name for part in _MEASURED)


def _rows(count, *, start):
    labels, about = ("refund", "crash"), ("money", "error")
    return [
        {"id": f"s{number}", "prompt": f"message {number}: {about[number % 2]}", "response": labels[number % 2]}
        for number in range(start, start + count)
    ]
