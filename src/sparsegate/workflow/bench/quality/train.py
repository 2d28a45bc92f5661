"""One run: set up a method, train, judge on the way. It needs a process of its own: peak memory is the process's."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from sparsegate.config import RefreshConfig, TrainingConfig
from sparsegate.contracts import Sample
from sparsegate.data import ChatTemplate
from sparsegate.data.datamodule import Batch, BatchLoader, to_device
from sparsegate.errors import SparsegateError
from sparsegate.models import load
from sparsegate.sparse.optimizer import make_schedule
from sparsegate.training.callbacks import peak_memory_bytes
from sparsegate.workflow.bench.energy import EnergyMeter
from sparsegate.workflow.bench.measure import now, start_phase
from sparsegate.workflow.bench.methods import METHODS, Prepared, Setup
from sparsegate.workflow.bench.quality.job import BASE, Outcome, Point, QualityJob
from sparsegate.workflow.bench.quality.judge import Judge, Judgement, encode_general, perplexity
from sparsegate.workflow.bench.quality.probe import answer_probe, weigh

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass
class _Meter:
    """Counts what training costs and leaves out what judging costs."""

    device: torch.device
    energy: EnergyMeter
    seconds: float = 0.0
    tokens: int = 0
    peak_bytes: int = 0
    started: float = field(default=0.0)

    def start(self) -> None:
        start_phase()
        self.energy.start()
        self.started = now(self.device)

    def stop(self) -> None:
        self.seconds += now(self.device) - self.started
        self.energy.stop()
        self.peak_bytes = max(self.peak_bytes, peak_memory_bytes(self.device))


def run_job(job: QualityJob) -> Outcome:
    """Train and judge one method.

    Raises:
        SparsegateError: If the method can't be set up, a sample can't be encoded, or the loss is not finite.
    """
    torch.set_num_threads(job.threads)
    torch.manual_seed(job.seed)
    model, tokenizer = load(Path(job.model))
    model.to(torch.device(job.device))
    judge = Judge(tokenizer, job.judged, batch_size=job.judge_batch_size)
    general = encode_general(tokenizer, job.general) if job.general else None
    skills = Judge(tokenizer, job.skills, batch_size=job.judge_batch_size) if job.skills else None
    meter = _Meter(model.device, EnergyMeter(model.device))
    meter.peak_bytes = peak_memory_bytes(model.device)
    sizes = [(weight.numel(), weight.nbytes) for weight in model.parameters()]
    prepared = None
    if job.method == BASE:
        last = judge.judge(model)
        points, order = [Point(0, 0.0, 0, last.quality, last.nll_nats)], ""
        selection_seconds, trained = 0.0, 0
    else:
        loader = _loader(job, tokenizer)
        meter.start()
        prepared = _prepare(job, model, loader)
        selection_seconds = now(model.device) - meter.started
        trained = sum(weight.numel() for weight in prepared.trained())
        points, order, last = _train(job, prepared, model, loader, judge, meter)
    probed = None
    if job.probe is not None:
        kept = weigh(prepared, model, sizes) if job.probe.keep and prepared is not None else None
        probed = answer_probe(job, job.probe, model, tokenizer, judged=last.answers, kept=kept)
    return Outcome(
        points=tuple(points),
        general_perplexity=perplexity(model, general) if general else None,
        skills=skills.judge(model).quality if skills else None,
        selection_seconds=selection_seconds,
        peak_memory_bytes=meter.peak_bytes,
        trained_parameters=trained,
        order_sha256=order,
        probed=probed,
        energy_joules=None if prepared is None else meter.energy.joules,
    )


def _loader(job: QualityJob, tokenizer: PreTrainedTokenizerBase) -> BatchLoader:
    judged = job.judged
    template = ChatTemplate(tokenizer, system_prompt=judged.system_prompt, max_tokens=judged.max_tokens)
    samples = [template.encode(Sample(**row)) for row in job.train]
    pad_id = tokenizer.pad_token_id
    assert isinstance(pad_id, int)
    return BatchLoader(samples, batch_size=job.batch_size, pad_id=pad_id, seed=job.seed)


def _prepare(job: QualityJob, model: PreTrainedModel, loader: BatchLoader) -> Prepared:
    name, _, setting = job.method.partition(":")
    calibration = [to_device(batch, model.device) for batch in islice(loader, TrainingConfig.calibration_batches)]
    loader.load_state_dict({"epoch": 0, "position": 0})
    model.train()
    setup = Setup(model, setting, calibration, job.seed, steps=job.steps + 1, refresh=RefreshConfig(**job.refresh))
    prepared = METHODS[name].build(setup)
    for group in prepared.optimizer.param_groups:
        group["lr"] = job.learning_rate
    return prepared


def _train(
    job: QualityJob, prepared: Prepared, model: PreTrainedModel, loader: BatchLoader, judge: Judge, meter: _Meter
) -> tuple[list[Point], str, Judgement]:
    """Train with the meter running.

    Returns:
        How good the model was on the way, the digest of the order, and the last judgement.
    """
    schedule = make_schedule(prepared.optimizer, total_steps=job.steps, warmup_fraction=job.warmup_fraction)
    points: list[Point] = []
    order = hashlib.sha256()
    found = Judgement(math.nan, math.nan)
    for step, batch in enumerate(islice(_endless(loader), job.steps), start=1):
        order.update(("\0".join(batch["ids"]) + "\n").encode())
        loss = prepared.loss(to_device(batch, model.device))
        loss.backward()  # type: ignore[no-untyped-call]
        torch.nn.utils.clip_grad_norm_(prepared.trained(), job.gradient_clip)
        prepared.optimizer.step()
        schedule.step()
        if prepared.refresh is not None:
            prepared.refresh(step - 1)
        prepared.optimizer.zero_grad(set_to_none=True)
        if not math.isfinite(float(loss.detach())):
            raise SparsegateError(f"training diverged at step {step} with learning rate {job.learning_rate:g}")
        meter.tokens += int(batch["attention_mask"].sum())
        del loss
        if step in job.judge_at:
            meter.stop()
            found = judge.judge(model)
            points.append(Point(step, meter.seconds, meter.tokens, found.quality, found.nll_nats))
            meter.start()
    return points, order.hexdigest(), found


def _endless(loader: BatchLoader) -> Iterator[Batch]:
    while True:
        yield from loader
