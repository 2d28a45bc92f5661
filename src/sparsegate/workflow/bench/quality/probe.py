"""What else a finished model is asked: validation samples, safety prompts, and what its user would keep."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from sparsegate.data import ChatTemplate
from sparsegate.evaluation.generation import generate
from sparsegate.evaluation.predictor import Predictor
from sparsegate.sparse.layers import sparse_layers
from sparsegate.sparse.targets import decoder_layers
from sparsegate.workflow.bench.measure import artifact_bytes
from sparsegate.workflow.bench.methods import Prepared
from sparsegate.workflow.bench.quality.job import Answers, FreeAnswer, Kept, MaskCount, Probe, Probed, QualityJob
from sparsegate.workflow.bench.quality.judge import Judge, evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def answer_probe(
    job: QualityJob,
    probe: Probe,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    judged: Answers,
    kept: Kept | None,
) -> Probed:
    """Answer a probe.

    Args:
        job: The job; its judged set says how prompts are put and which labels there are.
        probe: What is asked.
        model: The trained model.
        tokenizer: Its tokenizer.
        judged: What it said to the judged samples.
        kept: What its user would keep.

    Raises:
        DataError: If a sample does not fit into its limit of tokens.
    """
    validation = None
    if probe.validation is not None:
        judge = Judge(tokenizer, probe.validation, batch_size=job.judge_batch_size)
        validation = judge.judge(model).answers
    template = ChatTemplate(tokenizer, system_prompt=None, max_tokens=job.judged.max_tokens)

    def freely(prompts: Sequence[str]) -> tuple[FreeAnswer, ...]:
        tokens = [template.encode_prompt(prompt) for prompt in prompts]
        texts = generate(model, tokenizer, tokens, max_new_tokens=probe.max_new_tokens, batch_size=job.judge_batch_size)
        return tuple(FreeAnswer(*text) for text in texts)

    with evaluating(model):
        return Probed(
            judged=judged,
            validation=validation,
            red_team=freely(probe.red_team),
            red_team_labels=_labels(job, probe.red_team, model, tokenizer),
            benign=freely(probe.benign),
            kept=kept,
        )


def _labels(
    job: QualityJob, prompts: Sequence[str], model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> tuple[int, ...]:
    """Return what the deployed interface would answer."""
    judged = job.judged
    if not judged.labels or not prompts:
        return ()
    predictor = Predictor(
        model,
        tokenizer,
        task=judged.task,
        labels=judged.labels,
        system_prompt=judged.system_prompt,
        max_tokens=judged.max_tokens,
        batch_size=job.judge_batch_size,
    )
    return tuple(judged.labels.index(answer.response) for answer in predictor.predict(prompts))


def weigh(prepared: Prepared, model: PreTrainedModel, base_sizes: Sequence[tuple[int, int]]) -> Kept:
    """Say what a trained model amounts to.

    Args:
        prepared: The method after its last step.
        model: The base model that it was set up on.
        base_sizes: Entries and bytes of each weight of the base model as it was loaded.
    """
    trained = prepared.trained()
    state = prepared.optimizer.state.values()
    moments = [value for one in state for value in one.values() if isinstance(value, Tensor)]
    return Kept(
        artifact_bytes=artifact_bytes(prepared),
        state_bytes=sum(2 * weight.nbytes for weight in trained) + sum(moment.nbytes for moment in moments),
        base_parameters=sum(entries for entries, _ in base_sizes),
        base_bytes=sum(size for _, size in base_sizes),
        mask=_mask(model),
    )


def _mask(model: PreTrainedModel) -> tuple[MaskCount, ...]:
    layers = sparse_layers(model)
    prefix = f"{decoder_layers(model)[0]}." if layers else ""
    counts = []
    for name, layer in layers.items():
        index, _, module = name.removeprefix(prefix).partition(".")
        counts.append(MaskCount(int(index), module, layer.support.values.numel(), layer.weight.numel()))
    return tuple(counts)
