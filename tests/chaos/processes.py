"""Runs commands in processes that die where they are told to; started as a script, so that everything is imported once.

Each line on standard input is a list of jobs (JSON). All of them run at once, each in a forked process; the answer is a
list of their exit codes, negative for a signal. A *point* is the moment before, after or inside a named call that
writes, asks the registry or trains; the product knows nothing of it.
"""

import errno
import functools
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import lightning.pytorch
from mlflow import MlflowClient
from mlflow.utils import requirements_utils

import sparsegate.workflow.history
import sparsegate.workflow.retrain  # noqa: F401  once, before the first fork
from sparsegate.cli import main
from sparsegate.files import write_json
from sparsegate.models import load
from sparsegate.registry.connection import connect
from sparsegate.training.module import SparseFineTuner
from sparsegate.workflow.ledger import Ledger
from sparsegate_gates import runner
from sparsegate_gates.worker import run_gate

LONGEST_S = 120
# another program at the database: it holds the lock that every writer needs for so many seconds, or moves the alias
_STRANGERS = {
    "lock": """
import sqlite3, sys, time
database = sqlite3.connect("mlflow.db", isolation_level=None, timeout=30)
database.execute("BEGIN IMMEDIATE")
print("locked", flush=True)
time.sleep(float(sys.argv[1]))
""",
    "move": """
import sqlite3, sys
with sqlite3.connect("mlflow.db", timeout=30) as database:
    database.execute("UPDATE registered_model_aliases SET version = ? WHERE alias = 'champion'", sys.argv[1:])
""",
}


class Points:
    """Traces the points that a process passes, and stops it at one.

    Args:
        stop_at: The point; None passes all.
        how: ``kill`` sends SIGKILL, ``full`` raises what a full disk raises; ``lock:S`` has another process lock the
            database for S seconds, ``move:N`` a stranger point the champion's alias at version N: the process goes on.
        trace: File that gets a line for each point, or None.
    """

    def __init__(self, stop_at, how, trace):
        self.stop_at, self.how, self.trace = stop_at, how, trace

    def reach(self, point):
        if self.trace is not None:
            with open(self.trace, "a", encoding="utf-8") as file:  # noqa: PTH123  Path's methods are points themselves
                file.write(f"{point}\n")
        if point == self.stop_at:
            self.stop()

    def stop(self):
        how, _, value = self.how.partition(":")
        if how == "full":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        self.stop_at = None  # once
        stranger = subprocess.Popen([sys.executable, "-c", _STRANGERS[how], value], stdout=subprocess.PIPE)
        stranger.stdout.readline()  # it has begun, or ended

    def around(self, owner, name, describe=lambda *_: ""):
        """Make the moments before and after a function two points."""
        original = getattr(owner, name)

        @functools.wraps(original)
        def wrapped(*args, **kwargs):
            named = f"{name} {describe(*args)}".strip()
            self.reach(f"before {named}")
            result = original(*args, **kwargs)
            self.reach(f"after {named}")
            return result

        setattr(owner, name, wrapped)

    def inside_writes(self):
        """Make the middle of each write of a temporary file's text a point: half of it is there."""
        original = Path.write_text

        @functools.wraps(original)
        def wrapped(path, text, *args, **kwargs):
            if path.name.startswith("."):
                original(path, text[: len(text) // 2], *args, **kwargs)
                self.reach(f"inside write_text {_place(path)}")
            return original(path, text, *args, **kwargs)

        Path.write_text = wrapped

    def install(self):
        self.inside_writes()
        self.around(os, "replace", lambda _, target: _place(Path(target)))
        self.around(shutil, "rmtree", lambda path, *_: _place(Path(path)))
        self.around(Ledger, "record", lambda _, stage, *__: stage)
        self.around(runner, "_run_worker", lambda _, log, *__: log.parent.name)
        self.around(SparseFineTuner, "training_step", lambda tuner, *_: f"of step {tuner.trainer.global_step}")
        self.around(lightning.pytorch.Trainer, "save_checkpoint", lambda trainer, *_: f"of step {trainer.global_step}")
        for name in _ASKED:
            self.around(MlflowClient, name)
        self.around(MlflowClient, "log_artifacts", lambda *args: args[-1])
        self.around(MlflowClient, "set_registered_model_alias", lambda *args: args[2])


_ASKED = (
    "create_experiment",
    "create_run",
    "update_run",
    "log_batch",
    "create_logged_model",
    "log_model_artifacts",
    "log_outputs",
    "finalize_logged_model",
    "create_registered_model",
    "create_model_version",
    "log_text",
    "set_terminated",
)


def _place(path):
    """Return folder and name of a file, without what chance or the clock has put into them."""
    name = path.name[1:].rpartition(".")[0] if path.name.startswith(".") else path.name
    folder = path.parent.name
    if name.startswith("tmp") or folder.startswith("tmp"):
        return "scratch"
    return f"{folder}/{name}" if folder != "events" else folder


def start(job):
    """Fork a process for a job; return its id."""
    child = os.fork()
    if child:
        return child
    signal.alarm(LONGEST_S)
    os.chdir(job["folder"])
    os.environ.update(job["environment"])
    for descriptor, name in ((1, "out"), (2, "err")):
        file = os.open(job[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o644)
        os.dup2(file, descriptor)
    if job["stop_at"] is not None or job["trace"] is not None:
        Points(job["stop_at"], job["how"], job["trace"]).install()
    raise SystemExit(main(job["arguments"]))


def fork_gate(job, log_path, timeout_s):
    """Run a gate in a forked process: a fresh interpreter takes seconds, and dies in the same way."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            name, gate, context, result_path = pickle.loads(job)  # noqa: S301  made by this process
            write_json(Path(result_path), run_gate(name, gate, context).to_json())
            code = 0
        finally:
            os._exit(code)  # whatever is raised: this copy of the run must not go on with it
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def serve(folder):
    """Import and open everything that takes long, then answer until standard input ends.

    Args:
        folder: Folder that holds the base model ``tiny`` and gets ``empty.db``, a database with MLflow's tables.
    """
    load(folder / "tiny")
    connect(f"sqlite:///{folder}/empty.db").search_experiments()
    requirements_utils._init_modules_to_packages_map()  # looks through every installed package
    runner._run_worker = fork_gate
    for line in sys.stdin:
        children = [start(job) for job in json.loads(line)]
        codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
        sys.stdout.write(json.dumps(codes) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve(Path(sys.argv[1]))
