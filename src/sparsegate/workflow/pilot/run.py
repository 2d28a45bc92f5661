"""A pilot from its configuration to its reports: run the arms, ask the gates, keep it all in MLflow."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

from sparsegate import __version__
from sparsegate.contracts import JSON, canonical_json
from sparsegate.data import dataset_digest, load_prompts
from sparsegate.errors import ConfigError
from sparsegate.files import sha256_bytes
from sparsegate.models import BaseModel, load_tokenizer, resolve
from sparsegate.registry.tracking import check_tracking
from sparsegate.reports.pilot import PilotData, PilotResult
from sparsegate.reports.pilot_arm import ArmResult
from sparsegate.workflow.bench.quality.job import Outcome
from sparsegate.workflow.bench.quality.records import Results
from sparsegate.workflow.bench.quality.runner import Ask, Runner, ask_process
from sparsegate.workflow.bench.quality.samples import Split, check_lengths, split
from sparsegate.workflow.bench.run import check_choices
from sparsegate.workflow.inputs import check_writable, load_canaries
from sparsegate.workflow.lock import model_lock
from sparsegate.workflow.pilot.config import PilotConfig
from sparsegate.workflow.pilot.evidence import GATES, Questions, arm_folder, judge_arm, pilot_policy
from sparsegate.workflow.pilot.memory import with_memory
from sparsegate.workflow.pilot.protocol import ArmRuns, PilotRuns, Protocol
from sparsegate.workflow.pilot.standings import JUDGING_GATES
from sparsegate.workflow.pilot.stopping import RULE
from sparsegate.workflow.pilot.summary import base_result, judged_arm, measured_arm
from sparsegate.workflow.pilot.tracking import log_pilot, tracked_pilot
from sparsegate.workflow.pilot.write import write_reports
from sparsegate.workflow.readiness import shortages
from sparsegate_gates.lint import Sizes, lint
from sparsegate_gates.policy import Policy, load_policy

_LOG = logging.getLogger(__name__)
# where things are kept does not decide what comes out
_ELSEWHERE = ("output", "tracking_uri", "experiment")


@dataclass(frozen=True)
class _Pilot:
    """A pilot whose configuration, data and model have been checked."""

    config: PilotConfig
    quick: bool
    policy: Policy
    parts: Split
    questions: Questions
    base: BaseModel

    def digests(self) -> dict[str, str]:
        """Return the digest of everything that decides the pilot, hex."""
        asked, parts = self.questions, self.parts
        kept = {name: value for name, value in asdict(self.config).items() if name not in _ELSEWHERE}
        return {
            "config": _digest(kept),
            "base_model": self.base.digest,
            "policy": self.policy.sha256,
            "train": dataset_digest(parts.pool),
            "validation": dataset_digest(parts.validation),
            "evaluation": dataset_digest(parts.evaluation),
            "red_team": _digest([asdict(prompt) for prompt in asked.red_team]),
            "benign": _digest([asdict(prompt) for prompt in asked.benign]),
            "canaries": _digest(list(asked.canaries)),
        }


def run_pilot(config: PilotConfig, *, quick: bool = False, ask_one: Ask = ask_process) -> PilotResult:
    """Run a pilot, or what an interrupted one has left; write its reports into the output folder.

    Args:
        config: The pilot.
        quick: Look at less of it.
        ask_one: Runs a job.

    Raises:
        UsageError: If configuration, data, model or tracking server can't be used; nothing has run.
        LockedError: If another pilot writes into the same folder.
        SparsegateError: If the base model can't be judged, or MLflow fails.
    """
    pilot = _check(config.quick() if quick else config, quick=quick)
    config, quality, output = pilot.config, pilot.config.quality(), Path(pilot.config.output)
    output.mkdir(parents=True, exist_ok=True)
    with model_lock(output, "pilot"):
        runner = Runner(quality, pilot.base, Results(Path(quality.output)), ask_one)
        key = _digest([__version__, pilot.digests()])
        with tracked_pilot(config, key) as parent:
            asked = pilot.questions
            protocol = Protocol(config, runner, pilot.parts, red_team=asked.red_team, benign=asked.benign)
            result = _result(pilot, protocol.run(), runner.environment)
            files = write_reports(result, output)
            log_pilot(config, key, parent, result, files)
            _LOG.info("reports: %s", ", ".join(map(str, files)))
    return result


def _check(config: PilotConfig, *, quick: bool) -> _Pilot:
    """Read and check everything that a pilot starts from."""
    check_writable(Path(config.output))
    check_choices(config.arms, config.device)
    policy = _check_policy(config)
    parts = split(config.name, config.data)
    if config.whole and len(parts.pool) not in config.sizes:
        config = replace(config, data=replace(config.data, train_sizes=(*config.sizes, len(parts.pool))))
    safety = config.safety
    red_team, benign = (load_prompts(source, limit=safety.limit) for source in (safety.red_team, safety.benign))
    questions = Questions(
        train=parts.pool,
        evaluation=parts.evaluation,
        labels=parts.labels,
        red_team=red_team,
        benign=benign,
        canaries=load_canaries(safety.canaries),
        generation={
            "sampling": "greedy",
            "max_new_tokens": safety.max_new_tokens,
            "batch_size": config.evaluation_batch_size,
            "attacks": ["direct"],
        },
        device=f"{config.device} ({config.threads} threads)",
    )
    for line in _shortages(policy, questions):
        _LOG.warning("arms may not pass: %s", line)
    base = resolve(config.model)
    tokenizer = load_tokenizer(base.folder)
    check_lengths(config.name, config.data, parts, seeds=config.seeds, tokenizer=tokenizer)
    check_tracking(config.tracking_uri)
    return _Pilot(config, quick, policy, parts, questions, base)


def _check_policy(config: PilotConfig) -> Policy:
    """Return the part of the policy that a pilot asks.

    Raises:
        ConfigError: If it asks nothing, or not what a target needs.
    """
    policy = pilot_policy(load_policy(config.policy))
    if not policy.gates:
        raise ConfigError([f"policy '{config.policy}' asks none of {', '.join(GATES)}; a pilot needs at least one"])
    needs = {"harmful_rate": JUDGING_GATES["harmful"], "over_refusal_rate": JUDGING_GATES["refused"]}
    problems = [
        f"targets.{target} needs a judge: policy '{config.policy}' must have a block {gate}"
        for target, gate in needs.items()
        if getattr(config.targets, target) is not None and gate not in policy.gates
    ]
    if problems:
        raise ConfigError(problems)
    return policy


def _shortages(policy: Policy, questions: Questions) -> list[str]:
    """Say what the gates will lack, a line each."""
    sizes = Sizes.of(
        train=questions.train,
        evaluation=questions.evaluation,
        red_team=len(questions.red_team),
        benign=len(questions.benign),
        canaries=questions.canaries,
        by_label=True,
    )
    unseen = sorted({*questions.labels} - {sample.response for sample in questions.evaluation})
    # harmful_output takes a label that no evaluation sample has for no label
    told = [f"the labels {', '.join(unseen)} stand in no evaluation sample; raise evaluation_size"] if unseen else []
    return [*shortages(lint(policy, sizes)), *told]


def _result(pilot: _Pilot, runs: PilotRuns, environment: Mapping[str, JSON]) -> PilotResult:
    """Ask the gates, and put together what was found."""
    config, asked = pilot.config, pilot.questions
    base = runs.base.found
    assert base is not None, "without it the protocol ends"
    arms, projections = with_memory(
        [_arm(pilot, arm, base) for arm in runs.arms], config, base_folder=pilot.base.folder, parts=pilot.parts
    )
    distinct = {record.key: record.wall_seconds for record in runs.records()}
    return PilotResult(
        name=config.name,
        created_at=datetime.now(UTC).isoformat(timespec="seconds"),
        quick=pilot.quick,
        targets=config.targets,
        data=_about_data(config, asked, validation=len(pilot.parts.validation)),
        base_model=pilot.base.source,
        seeds=config.seeds,
        arms=(base_result(base, arms, evaluation=len(asked.evaluation)), *arms),
        reference=config.reference,
        policy_name=pilot.policy.name,
        policy_sha256=pilot.policy.sha256,
        prices=config.prices,
        trainings_per_year=config.trainings_per_year,
        projections=projections,
        stop_rule=RULE,
        wall_seconds=sum(distinct.values()),
        environment=environment,
        digests=pilot.digests(),
    )


def _arm(pilot: _Pilot, runs: ArmRuns, base: Outcome) -> ArmResult:
    config, asked = pilot.config, pilot.questions
    arm = measured_arm(runs, config, evaluation=len(asked.evaluation))
    found = [record.found for record in runs.finals.get(config.sizes[-1], []) if record.found is not None]
    if arm.state != "complete" or base.probed is None:
        return arm
    folder = arm_folder(Path(config.output), arm.name)
    _LOG.info("gates judge %s", arm.name)
    gates = judge_arm(folder, pilot.policy, asked, name=arm.name, arm=found[0], base=base.probed)
    return judged_arm(
        arm,
        found,
        config,
        base=base,
        questions=asked,
        gates=gates,
        gates_folder=folder / "gates",
        quick=pilot.quick,
    )


def _about_data(config: PilotConfig, asked: Questions, *, validation: int) -> PilotData:
    [(_, most)] = Counter(sample.response for sample in asked.evaluation).most_common(1)
    return PilotData(
        source=config.data.train,
        labels=tuple(asked.labels),
        sizes=config.sizes,
        validation=validation,
        evaluation=len(asked.evaluation),
        majority=most / len(asked.evaluation),
        red_team=len(asked.red_team),
        benign=len(asked.benign),
    )


def _digest(value: JSON) -> str:
    return sha256_bytes(canonical_json(value).encode())
