"""What the gates judge an arm by: its answers and the base model's, written as a run's evaluate stage writes them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from sparsegate.contracts import JSON, CostReport, GateResult, Generation, Prediction, Sample, canonical_json
from sparsegate.data import PromptRow
from sparsegate.files import write_json, write_records, write_text
from sparsegate.workflow.bench.quality.job import FreeAnswer, Outcome, Probed
from sparsegate_gates.policy import Policy
from sparsegate_gates.runner import run_gates

# those that ask about a model's answers and cost; data and files are judged when a model is to be registered
GATES = ("accuracy", "regression", "harmful_output", "over_refusal", "cost")
_TIMEOUT_S = 900.0


@dataclass(frozen=True)
class Questions:
    """What every model was asked, and how.

    Args:
        train: Samples that training may draw from.
        evaluation: The evaluation samples.
        labels: The labels, in the order of the answers' numbers.
        red_team: Harmful requests.
        benign: Harmless requests.
        canaries: Rows that test the judge.
        generation: How free text was written, for the gates' record.
        device: Where it ran.
    """

    train: Sequence[Sample]
    evaluation: Sequence[Sample]
    labels: Sequence[str]
    red_team: Sequence[PromptRow]
    benign: Sequence[PromptRow]
    canaries: Sequence[Mapping[str, JSON]]
    generation: Mapping[str, JSON]
    device: str


def arm_folder(output: Path, name: str) -> Path:
    """Return the folder of an arm's evidence."""
    return output / "arms" / re.sub(r"[^\w.=-]+", "_", name)


def pilot_policy(policy: Policy) -> Policy:
    """Return the part of a policy that a pilot can ask."""
    return replace(policy, gates={name: policy.gates[name] for name in policy.gates if name in GATES})


def predictions(questions: Questions, probed: Probed) -> list[Prediction]:
    """Return what a model said to the evaluation samples."""
    said = [questions.labels[label] for label in probed.judged.labels]
    return [
        Prediction(sample.id, sample.response, answer, answer == sample.response, nll, sample.slices)
        for sample, answer, nll in zip(questions.evaluation, said, probed.judged.nll_nats, strict=True)
    ]


def judge_arm(
    folder: Path, policy: Policy, questions: Questions, *, name: str, arm: Outcome, base: Probed
) -> tuple[GateResult, ...]:
    """Write an arm's evidence as a run's evaluate stage does, and ask the gates.

    Args:
        folder: Folder of the arm.
        policy: What a pilot asks of the policy.
        questions: What both models were asked.
        name: The arm's name.
        arm: Its run at the largest size with the first seed, probed.
        base: The base model's answers.
    """
    ours = arm.probed
    assert ours is not None, "the largest size is probed"
    asked = [Sample(prompt.id, prompt.prompt, "", {"category": prompt.category}) for prompt in questions.red_team]
    put_out = [questions.labels[label] for label in ours.red_team_labels]
    records: dict[str, Sequence[object]] = {
        "data.train": questions.train,
        "data.evaluation": questions.evaluation,
        "predictions.candidate": predictions(questions, ours),
        "predictions.base": predictions(questions, base),
        "predictions.red_team.candidate": [
            Prediction(sample.id, "", label, False, slices=sample.slices)
            for sample, label in zip(asked, put_out, strict=True)
        ],
    }
    for role, probed in (("candidate", ours), ("base", base)):
        records[f"generations.red_team.{role}"] = _generations(questions.red_team, probed.red_team)
        records[f"generations.benign.{role}"] = _generations(questions.benign, probed.benign)
    files = {kind: folder / f"{kind}.jsonl" for kind in records}
    for kind, lines in records.items():
        write_records(files[kind], lines)
    files["prompts.canaries"], files["cost"] = folder / "canaries.jsonl", folder / "cost.json"
    write_text(files["prompts.canaries"], "".join(f"{canonical_json(row)}\n" for row in questions.canaries))
    cost = _cost(name, arm, questions.device)
    if cost is None:
        del files["cost"]
    else:
        write_json(files["cost"], asdict(cost))
    results = run_gates(
        policy,
        stage="model",
        artifacts=files,
        output_dir=folder / "gates",
        task="classification",
        facts={"first": True, "generation": dict(questions.generation)},
        timeout_s=_TIMEOUT_S,
    )
    return tuple(results)


def _generations(prompts: Sequence[PromptRow], answers: Sequence[FreeAnswer]) -> list[Generation]:
    return [
        Generation(prompt.id, prompt.category, prompt.prompt, answer.text, answer.finished)
        for prompt, answer in zip(prompts, answers, strict=True)
    ]


def _cost(name: str, arm: Outcome, device: str) -> CostReport | None:
    """Return what an arm cost; None if it was not weighed."""
    kept = arm.probed.kept if arm.probed else None
    if kept is None:
        return None
    return CostReport(
        method=name,
        train_seconds=arm.end.seconds,
        selection_seconds=arm.selection_seconds,
        tokens_per_second=arm.end.tokens / arm.end.seconds,
        steps=arm.end.step,
        peak_memory_bytes=arm.peak_memory_bytes,
        trainable_parameters=arm.trained_parameters,
        total_parameters=kept.base_parameters,
        trainable_state_bytes=kept.state_bytes,
        artifact_bytes=kept.artifact_bytes,
        base_bytes=kept.base_bytes,
        device=device,
    )
