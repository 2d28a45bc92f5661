"""The stages of a run. Each reads files, writes files into the run's folder and records them in the ledger."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sparsegate.config import RunConfig
from sparsegate.contracts import (
    JSON,
    CostReport,
    EncodedSample,
    Prediction,
    TextScore,
    canonical_json,
)
from sparsegate.data import ChatTemplate
from sparsegate.errors import RegistryError
from sparsegate.evaluation.forgetting import perplexity
from sparsegate.evaluation.metrics import classification_figures
from sparsegate.files import read_json, read_records, write_json, write_records, write_text
from sparsegate.registry.package import write_package
from sparsegate.registry.promotion import register, verify_readback, version_of_run
from sparsegate.registry.tracking import count_runs
from sparsegate.registry.versions import live_version
from sparsegate.reports.model import GateReport
from sparsegate.workflow.candidate import serving_spec
from sparsegate.workflow.evaluate import probe_digest
from sparsegate.workflow.evidence import gather_evidence, previous_evidence, seal_evidence
from sparsegate.workflow.identity import signing_key
from sparsegate.workflow.run import Run
from sparsegate.workflow.versions import promote_judged

if TYPE_CHECKING:
    from sparsegate.training.learning_rate import RateTest

_LOG = logging.getLogger(__name__)
EARLY_STAGES = ("answers", "gate answers")


def evaluate_stage(champion: int | None) -> str:
    """Return the name of the stage that evaluates against a champion, or against the base alone."""
    return f"evaluate against {f'version {champion}' if champion else 'base'}"


def gate_stage(champion: int | None) -> str:
    """Return the name of the stage that judges against a champion, or against the base alone."""
    return f"gate against {f'version {champion}' if champion else 'base'}"


def all_stages(config: RunConfig, champion: int | None) -> tuple[str, ...]:
    """Return the stages that leave files, in their order."""
    early = EARLY_STAGES if config.evaluation.stop_early else ()
    return ("data", "gate data", "train", *early, evaluate_stage(champion), gate_stage(champion))


def do_once(run: Run, stage: str, work: Callable[[], Sequence[Path]]) -> None:
    """Run a stage unless the ledger has it, whole."""
    if run.ledger.is_done(stage):
        _LOG.info("%s: done before", stage)
        return
    _LOG.info("%s", stage)
    run.ledger.record(stage, work())


def write_data(run: Run) -> list[Path]:
    """Write the samples as the later stages see them."""
    folder, inputs = run.folder / "data", run.inputs
    parts = {"train": inputs.train, "validation": inputs.validation, "evaluation": inputs.evaluation}
    if not inputs.validation:  # as asked: validation_fraction is 0
        del parts["validation"]
    for name, samples in parts.items():
        write_records(folder / f"{name}.jsonl", samples)
    write_text(folder / "canaries.jsonl", "".join(f"{canonical_json(row)}\n" for row in inputs.canaries))
    return [folder / f"{name}.jsonl" for name in (*parts, "canaries")]


def train_candidate(run: Run, *, logger: Any = None) -> list[Path]:
    """Fine-tune the base and leave the delta, its cost and a probe of the trained model."""
    from sparsegate.models import load
    from sparsegate.training.run import train

    model, tokenizer = load(run.base.folder, trust_remote_code=run.config.model.trust_remote_code)
    pad_id = tokenizer.pad_token_id
    assert isinstance(pad_id, int)
    folder = run.folder / "train"
    outcome = train(
        model,
        encode_samples(run, tokenizer, run.inputs.train),
        validation=encode_samples(run, tokenizer, run.inputs.validation),
        config=run.config.training,
        pad_id=pad_id,
        base_digest=run.base.digest,
        output_dir=folder,
        logger=logger,
    )
    write_json(run.cost, asdict(outcome.cost))
    write_json(folder / "metrics.json", outcome.metrics)
    write_json(folder / "probe.json", {"probe_sha256": probe_digest(model)})
    return [outcome.delta, run.cost, folder / "metrics.json", folder / "probe.json"]


def rate_test(run: Run, path: Path) -> RateTest:
    """Run a learning-rate range test and write what it found."""
    from sparsegate.models import load
    from sparsegate.training.learning_rate import find_learning_rate

    model, tokenizer = load(run.base.folder, trust_remote_code=run.config.model.trust_remote_code)
    pad_id = tokenizer.pad_token_id
    assert isinstance(pad_id, int)
    samples = encode_samples(run, tokenizer, run.inputs.train)
    found = find_learning_rate(model, samples, config=run.config.training, pad_id=pad_id)
    write_json(path, asdict(found))
    return found


def encode_samples(run: Run, tokenizer: Any, samples: Sequence[Any]) -> list[EncodedSample]:
    """Turn samples into token ids; pairs of the safety mix are encoded as free chat, without the system prompt."""
    data = run.config.data
    task = ChatTemplate(tokenizer, system_prompt=data.system_prompt, max_tokens=data.max_tokens)
    chat = ChatTemplate(tokenizer, system_prompt=None, max_tokens=data.max_tokens)
    return [(chat if sample.id in run.inputs.mix_ids else task).encode(sample) for sample in samples]


def attempt_tags(run: Run) -> dict[str, str]:
    """Return the tags by which the candidates judged by one evaluation set are counted."""
    return {
        "sparsegate.model": run.config.registry.name,
        "sparsegate.evaluation_sha256": run.manifest.data_sha256["evaluation"],
    }


def registered_version(run: Run) -> int | None:
    """Return the version that the run was registered as before, or None.

    Raises:
        RegistryError: If MLflow fails.
    """
    registry = run.config.registry
    return version_of_run(registry.tracking_uri, registry.name, run.manifest.run_key)


def register_candidate(run: Run, report: GateReport, champion: int | None, *, run_id: str) -> int:
    """Register the candidate with its evidence and check what the registry then holds; return the version.

    Args:
        run: The run.
        report: What the gates said.
        champion: Version it was judged against, or None.
        run_id: Its run in MLflow.

    Raises:
        RegistryError: If MLflow fails, holds other bytes than were given, or has another champion by now.
    """
    assert report.verdict.releases, "only a candidate that passed, or whose failures were waived, is registered"
    registry, package = run.config.registry, run.folder / "package"
    uri, name = registry.tracking_uri, registry.name
    if live_version(uri, name, registry.alias) != champion:
        raise RegistryError(f"{name}@{registry.alias} moved while the candidate was judged; run again to judge it anew")
    write_package(package, serving_spec(run), delta=run.delta)
    evidence = gather_evidence(
        run,
        report,
        run_id=run_id,
        models=summary(run),
        attempt=count_runs(uri, registry.experiment, tags=attempt_tags(run)),
        champion=champion,
        previous=previous_evidence(uri, name),
    )
    description = seal_evidence(package, evidence, signing_key(registry))
    tags = {
        "sparsegate.verdict": str(report.verdict),
        "sparsegate.policy_sha256": report.policy_sha256,
        "sparsegate.base_digest": run.base.digest,
    }
    version = register(
        uri,
        name=name,
        run_id=run_id,
        package=package,
        input_example=[sample.prompt for sample in run.inputs.evaluation[:3]],
        tags=tags,
        run_key=run.manifest.run_key,
        description=description,
    )
    verify_readback(uri, name=name, version=version, package=package)
    return version


def promote_version(run: Run, version: int) -> dict[str, JSON]:
    """Make a version the champion, if its evidence holds and the champion is the one it was judged against.

    Returns:
        The version's evidence.
    """
    reason = f"passed policy {run.policy.name} in run {run.manifest.run_key[:16]}"
    return promote_judged(run.config.registry, version, reason=reason).evidence


def summary(run: Run) -> dict[str, dict[str, float]]:
    """Return accuracy (and macro F1 or perplexity) of each evaluated model."""
    rows: dict[str, dict[str, float]] = {}
    for role in ("base", "anchor", "champion", "candidate"):
        path = run.folder / "evaluate" / f"predictions.{role}.jsonl"
        if not path.exists():
            continue
        predictions = read_records(path, Prediction)
        if not predictions:  # the gates say so
            continue
        figures = {"accuracy": sum(line.correct for line in predictions) / len(predictions)}
        nlls = [line.nll_nats for line in predictions if line.nll_nats is not None]
        if nlls:
            figures["perplexity"] = math.exp(sum(nlls) / len(nlls))
        if run.config.data.task == "classification":
            expected, predicted = [p.expected for p in predictions], [p.predicted for p in predictions]
            figures["macro_f1"] = classification_figures(expected, predicted).macro_f1
        general = run.folder / "evaluate" / f"general.{role}.jsonl"
        if general.exists():
            figures["general_perplexity"] = perplexity(read_records(general, TextScore))
        rows[role] = figures
    return rows


def read_cost(run: Run) -> CostReport | None:
    """Return what training cost, or None if it was not reached."""
    return CostReport(**read_json(run.cost)) if run.cost.exists() else None
