"""A registered version answers in another process, from a database and from a tracking server."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

sys.path.append(str(Path(__file__).parents[1]))
from byte_model import write_byte_model

from sparsegate.contracts import Task
from sparsegate.errors import RegistryError, TrackingError
from sparsegate.evaluation.predictor import Answer, Predictor
from sparsegate.files import sha256_file
from sparsegate.models import load, resolve
from sparsegate.registry.package import ServingSpec, write_package
from sparsegate.registry.promotion import champion, promote, register, verify_readback
from sparsegate.registry.pyfunc import save_pyfunc
from sparsegate.registry.tracking import (
    check_tracking,
    end_run,
    lightning_logger,
    log_folder,
    log_metrics,
    log_params,
    open_run,
)
from sparsegate.sparse.delta import Delta, DeltaEntry, apply_delta, read_delta, write_delta

PROMPTS = ["where is my refund?", "the app crashes at login", "hello"]
WEIGHT = "model.layers.0.mlp.down_proj.weight"
TASKS: tuple[Task, ...] = ("classification", "generation")


class Made(NamedTuple):
    """A package, and what its model answers in the process that made it."""

    package: Path
    answers: list[Answer]
    base_answers: list[Answer]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("base model")
    write_byte_model(folder, num_layers=1)
    return folder


@pytest.fixture(scope="module")
def made(base: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Task, Made]:
    folder = tmp_path_factory.mktemp("made")
    found = resolve(str(base))
    model, _ = load(found.folder)
    weight = model.get_parameter(WEIGHT).detach()
    columns = torch.arange(0, weight.shape[1], 2, dtype=torch.int32)
    old = weight[:, columns].clone()
    new = old + torch.randn(old.shape, generator=torch.Generator().manual_seed(1))
    delta = folder / "delta.safetensors"
    entry = DeltaEntry("column", (weight.shape[0], weight.shape[1]), columns, old, new)
    write_delta(Delta({WEIGHT: entry}, found.digest, {}), delta)
    return {task: _make(task, folder / task, base, delta) for task in TASKS}


def _make(task: Task, folder: Path, base: Path, delta: Path) -> Made:
    found = resolve(str(base))
    spec = ServingSpec(
        task=task,
        base_source=found.source,
        base_sha256=None,
        base_digest=found.digest,
        labels=("refund", "crash", "greeting") if task == "classification" else (),
        system_prompt="You sort messages.",
        max_tokens=96,
        max_new_tokens=6,
        trust_remote_code=False,
        delta_sha256=sha256_file(delta),
        sparsegate_version="0.1.0",
    )
    write_package(folder, spec, delta=delta)
    model, tokenizer = load(found.folder)
    predictor = Predictor(
        model,
        tokenizer,
        task=task,
        labels=spec.labels,
        system_prompt=spec.system_prompt,
        max_tokens=spec.max_tokens,
        max_new_tokens=spec.max_new_tokens,
    )
    base_answers = predictor.predict(PROMPTS)
    apply_delta(model, read_delta(delta))
    return Made(folder, predictor.predict(PROMPTS), base_answers)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    for _ in range(1200):
        if process.poll() is not None:
            break
        try:
            with urllib.request.urlopen(url, timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.1)
    raise RuntimeError(f"it did not start:\n{log.read_text()}")


class Server:
    """A real ``mlflow server`` on loopback, which keeps runs in sqlite and hands artifacts through."""

    def __init__(self, folder: Path) -> None:
        port = free_port()
        self.uri = f"http://127.0.0.1:{port}"
        self.log = folder / "server.log"
        command = [
            sys.executable,
            "-m",
            "mlflow",
            "server",
            "--host",
            "127.0.0.1",
            "--port",
            str(port),
            "--workers",
            "1",
        ]
        command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
        command += ["--artifacts-destination", str(folder / "artifacts")]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                stdout=log,
                stderr=log,
                start_new_session=True,
                env={**os.environ, "MLFLOW_DISABLE_TELEMETRY": "true"},
            )

    def wait_until_ready(self) -> None:
        wait_for(f"{self.uri}/health", self.process, self.log)

    def stop(self) -> None:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    running = Server(tmp_path_factory.mktemp("server"))
    try:
        running.wait_until_ready()
        yield running
    finally:
        running.stop()


@pytest.fixture(params=["sqlite", "server"])
def uri(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'tracking' / 'mlflow.db'}"
    server: Server = request.getfixturevalue("server")
    return server.uri


def publish(uri: str, name: str, made: Made) -> int:
    """Take a package through everything that the retrain workflow asks of the registry."""
    check_tracking(uri)
    run_id = open_run(uri, "serving", run_name=name, tags={"key": name})
    log_params(uri, run_id, {"density": 0.1})
    lightning_logger(uri, "serving", run_id).log_metrics({"train_loss": 1.0}, step=1)
    log_metrics(uri, run_id, {"accuracy": 0.9})
    log_folder(uri, run_id, made.package, "reports")
    version = register(
        uri,
        name=name,
        run_id=run_id,
        package=made.package,
        input_example=PROMPTS[:1],
        tags={"verdict": "PASS"},
        run_key="0" * 64,
    )
    verify_readback(uri, name=name, version=version, package=made.package)
    promote(uri, name, version, "champion", expected=None)
    end_run(uri, run_id, "FINISHED")
    return version


# run in a folder of its own, by a process that knows nothing but the tracking URI and the names
ASK = """
import json, sys
import mlflow, pandas as pd
uri, prompts, *names = sys.argv[1:]
mlflow.set_tracking_uri(uri)
prompts = json.loads(prompts)
answers = {}
for name in names:
    model = mlflow.pyfunc.load_model(f"models:/{name}@champion")
    frame = model.predict(pd.DataFrame({"prompt": prompts}))
    assert frame.equals(model.predict([{"prompt": prompt} for prompt in prompts]))
    assert len(model.predict(pd.DataFrame({"prompt": pd.Series([], dtype=str)}))) == 0
    answers[name] = frame.to_dict("list")
print("ANSWERS " + json.dumps(answers))
"""


def ask(uri: str, names: list[str], folder: Path) -> dict[str, dict[str, list[object]]]:
    folder.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", ASK, uri, json.dumps(PROMPTS), *names], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    answers: dict[str, dict[str, list[object]]] = json.loads(done.stdout.rpartition("ANSWERS ")[2])
    return answers


def test_the_champion_answers_in_a_new_process_as_it_did_where_it_was_made(
    uri: str, made: dict[Task, Made], tmp_path: Path
) -> None:
    for task in TASKS:
        assert publish(uri, f"served-{task}", made[task]) == 1
        assert made[task].answers != made[task].base_answers
    answers = ask(uri, [f"served-{task}" for task in TASKS], tmp_path / "elsewhere")
    labelled = made["classification"].answers
    assert answers["served-classification"]["response"] == [answer.response for answer in labelled]
    assert answers["served-classification"]["log_probability"] == pytest.approx(
        [answer.log_probability for answer in labelled], abs=1e-5
    )
    assert answers["served-generation"] == {"response": [answer.response for answer in made["generation"].answers]}


def test_mlflow_models_serve_answers_over_http(made: dict[Task, Made], tmp_path: Path) -> None:
    uri, port, log = f"sqlite:///{tmp_path / 'mlflow.db'}", free_port(), tmp_path / "log"
    publish(uri, "served", made["classification"])
    command = [sys.executable, "-m", "mlflow", "models", "serve", "--model-uri", "models:/served@champion"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--workers", "1", "--env-manager", "local"]
    environment = {**os.environ, "MLFLOW_TRACKING_URI": uri, "MLFLOW_DISABLE_TELEMETRY": "true"}
    with log.open("wb") as file:
        process = subprocess.Popen(
            command, cwd=tmp_path, stdout=file, stderr=file, start_new_session=True, env=environment
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/ping", process, log)
        body = json.dumps({"dataframe_split": {"columns": ["prompt"], "data": [[prompt] for prompt in PROMPTS]}})
        request = urllib.request.Request(
            f"http://127.0.0.1:{port}/invocations", body.encode(), {"Content-Type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            rows = json.load(answer)["predictions"]
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    assert [row["response"] for row in rows] == [answer.response for answer in made["classification"].answers]


def test_a_server_that_dies_is_an_error_and_never_a_missing_champion(
    made: dict[Task, Made], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    server = Server(tmp_path)
    try:
        server.wait_until_ready()
        assert champion(server.uri, "dying", "champion", download_to=tmp_path / "got") is None
        publish(server.uri, "dying", made["classification"])
        found = champion(server.uri, "dying", "champion", download_to=tmp_path / "got")
        assert found is not None
        assert found.version == 1
    finally:
        server.stop()
    with pytest.raises(TrackingError, match=r"Connection (refused|reset by peer);"):
        check_tracking(server.uri)
    with pytest.raises(RegistryError, match="reading dying@champion"):
        champion(server.uri, "dying", "champion", download_to=tmp_path / "got")


def test_a_changed_base_is_refused_when_the_version_is_loaded(
    made: dict[Task, Made], base: Path, tmp_path: Path
) -> None:
    import mlflow

    save_pyfunc(tmp_path / "model", made["classification"].package, input_example=PROMPTS[:1])
    kept = (base / "config.json").read_bytes()
    try:
        (base / "config.json").write_bytes(kept + b"\n")
        with pytest.raises(Exception, match="put the original files back"):
            mlflow.pyfunc.load_model(str(tmp_path / "model"))
    finally:
        (base / "config.json").write_bytes(kept)
    shutil.rmtree(tmp_path / "model")
