"""A registry with versions that carry evidence, as a retrain leaves them, and the command line on top of it."""

import json
import logging
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat, PublicFormat

from sparsegate.cli import main
from sparsegate.config import DataConfig, RegistryConfig, RunConfig
from sparsegate.contracts import Check, CostReport, GateResult, Prediction, RunManifest, Sample
from sparsegate.files import write_json, write_records
from sparsegate.models import BaseModel
from sparsegate.registry.connection import connect
from sparsegate.registry.package import write_package
from sparsegate.registry.promotion import register
from sparsegate.registry.tracking import open_run
from sparsegate.reports.model import GateReport
from sparsegate.sparse.delta import Delta, DeltaEntry, write_delta
from sparsegate.workflow.candidate import serving_spec
from sparsegate.workflow.evidence import gather_evidence, previous_evidence, seal_evidence
from sparsegate.workflow.identity import signing_key
from sparsegate.workflow.inputs import Inputs
from sparsegate.workflow.ledger import Ledger
from sparsegate.workflow.run import Run
from sparsegate_gates.policy import load_policy

POLICY = """
accuracy: {reason: "test: the headline", floor: 0.5, gain_over_base: 0.0, minimum_n: 4}
over_refusal: {reason: "test: a gate with a judge", ceiling: 0.5, margin_over_base: 0.5, minimum_n: 4}
"""
COST = CostReport("sparse", 12.0, 1.0, 100.0, 3, 10**9, 2, 16, 24, 100, 1000, "cpu (1 thread)")


@contextmanager
def kept_loggers():
    """Keep the loggers: the command line sets up logging for its process, and here that is the process of all tests."""
    loggers = [logging.getLogger(name) for name in ("sparsegate", "sparsegate_gates")]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    yield
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


@pytest.fixture(autouse=True)
def loggers_as_before(monkeypatch):
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    with kept_loggers():
        yield


@pytest.fixture(scope="module")
def loggers_as_before_the_module():
    """For what runs commands once for all tests of a module."""
    with kept_loggers():
        yield


@dataclass
class Registry:
    """A folder with a registry, in which commands run."""

    folder: Path
    uri: str
    capsys: pytest.CaptureFixture

    def key(self, name):
        """Make a key pair; return the files of its private and its public part."""
        key = Ed25519PrivateKey.generate()
        private, public = self.folder / f"{name}.pem", self.folder / f"{name}.pub.pem"
        private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
        return str(private), str(public)

    def prepare(self, run_key, *, name="desk", key=None, champion=None, observed=0.9, content=None):
        """Make a run's folder with a sealed package, as it is before it is registered; return the run and its id."""
        run = self.make_run(run_key, name, key, content or run_key)
        run_id = open_run(self.uri, "sparsegate", run_name=run_key, tags={})
        report = self.report(run, observed)
        write_package(run.folder / "package", serving_spec(run), delta=run.delta)
        evidence = gather_evidence(
            run,
            report,
            run_id=run_id,
            models={"base": {"accuracy": 0.1}, "candidate": {"accuracy": observed}},
            attempt=1,
            champion=champion,
            previous=previous_evidence(self.uri, name),
        )
        seal_evidence(run.folder / "package", evidence, signing_key(run.config.registry))
        return run, run_id

    def report(self, run, observed=0.9):
        """Return what the two gates of the policy say of a model with this accuracy."""
        checks = [Check.at_least("accuracy", observed, 0.5, n=4), Check.at_most("refused", 0.0, 0.5, n=4)]
        gates, policy = tuple(run.policy.gates), run.policy
        results = tuple(GateResult(gate, (check,)) for gate, check in zip(gates, checks, strict=True))
        return GateReport(run.manifest.run_key, policy.name, policy.sha256, gates, results, "2026-11-24")

    def make_run(self, run_key, name, key, content):
        folder = self.folder / "runs" / run_key
        values = torch.tensor([[float(byte)] for byte in content.encode()[:4].ljust(4)])
        entry = DeltaEntry("column", (4, 4), torch.tensor([1], dtype=torch.int32), torch.zeros(4, 1), values)
        plan = {"plan": {"first_layer": 0, "density": 0.1}}
        folder.mkdir(parents=True)
        (folder / "train").mkdir()
        write_delta(Delta({"layer.weight": entry}, "b" * 64, plan), folder / "train" / "delta.safetensors")
        write_json(folder / "train" / "cost.json", COST.__dict__)
        write_records(folder / "evaluate" / "predictions.candidate.jsonl", [Prediction("1", "refund", "refund", True)])
        (self.folder / "policy.yaml").write_text(POLICY, encoding="utf-8")
        config = RunConfig(data=DataConfig(), registry=RegistryConfig(name, self.uri, signing_key=key, actor="ana"))
        manifest = RunManifest(run_key, "0.1.0", "c" * 64, "p", "b" * 64, {"evaluation": "e" * 64}, {"torch": "2"})
        inputs = Inputs((), frozenset(), (), (Sample("1", "hello", "refund"),), ("refund", "crash"), (), (), ())
        base = BaseModel(source="/models/base", folder=self.folder, digest="b" * 64)
        policy = load_policy(str(self.folder / "policy.yaml"))
        return Run(config, policy, inputs, base, manifest, folder, Ledger(folder))

    def add(self, run_key, *, name="desk", package=None, run_id=None, **evidence):
        """Register a version with evidence; return its number."""
        if package is None:
            run, run_id = self.prepare(run_key, name=name, **evidence)
            package = run.folder / "package"
        return register(
            self.uri, name=name, run_id=run_id, package=package, input_example=["hello"], tags={}, run_key=run_key
        )

    def package(self, version, name="desk"):
        """Return where the registry keeps a version's package."""
        uri = connect(self.uri).get_model_version_download_uri(name, str(version))
        return Path(uri.removeprefix("file://")) / "artifacts" / "package"

    def aliases(self, name="desk"):
        return {alias: int(number) for alias, number in connect(self.uri).get_registered_model(name).aliases.items()}

    def run(self, *arguments):
        """Run a command; return its exit code, its stdout and its stderr."""
        self.capsys.readouterr()
        code = main([*arguments, "--tracking_uri", self.uri])
        out, err = self.capsys.readouterr()
        assert "Traceback" not in err
        return code, out, err

    def verify(self, target, *arguments):
        """Verify; return the exit code and what was found."""
        code, out, err = self.run("verify", target, "--json", *arguments)
        assert out, err
        return code, json.loads(out)

    def move(self, verb, *arguments):
        return self.run(verb, "desk", "--reason", "because", "--actor", "bo", *arguments)


@pytest.fixture(scope="session")
def database(tmp_path_factory):
    """The URI of one database for all tests: making MLflow's tables takes longest."""
    return f"sqlite:///{tmp_path_factory.mktemp('registry') / 'mlflow.db'}"


@pytest.fixture
def registry(tmp_path, monkeypatch, capsys, database):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SPARSEGATE_SIGNING_KEY", raising=False)
    client = connect(database)
    for model in client.search_registered_models():
        client.delete_registered_model(model.name)
    return Registry(tmp_path, database, capsys)
