"""How good is a model at this moment? Training goes on afterwards as if nothing had happened."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from sparsegate.contracts import EncodedSample, Sample
from sparsegate.data import ChatTemplate
from sparsegate.errors import DataError
from sparsegate.evaluation.generation import response_nll
from sparsegate.evaluation.labels import score_labels
from sparsegate.workflow.bench.quality.job import Answers, GeneralSet, JudgedSet

if TYPE_CHECKING:
    from torch import nn
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_TEXT_BATCH = 2  # every token of a general text has its logits


class Judgement(NamedTuple):
    """Accuracy or perplexity, mean negative log-likelihood of a response token, and what was said to each sample."""

    quality: float
    nll_nats: float
    answers: Answers = Answers((), ())


class Judge:
    """Judges one set of samples, encoded once.

    Args:
        tokenizer: The model's tokenizer.
        judged: The samples.
        batch_size: Samples scored at once.

    Raises:
        DataError: If a sample does not fit into its limit of tokens.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, judged: JudgedSet, *, batch_size: int) -> None:
        template = ChatTemplate(tokenizer, system_prompt=judged.system_prompt, max_tokens=judged.max_tokens)
        samples = [Sample(**row) for row in judged.samples]
        self._samples = [template.encode(sample) for sample in samples]
        self._labels = [template.encode_response(label) for label in judged.labels]
        self._expected = [judged.labels.index(sample.response) for sample in samples] if judged.labels else []
        self._batch_size = batch_size

    def judge(self, model: PreTrainedModel) -> Judgement:
        """Score a model."""
        with evaluating(model):
            nlls = response_nll(model, self._samples, batch_size=self._batch_size)
            nll = _token_mean(nlls, self._samples)
            if not self._labels:
                return Judgement(math.exp(nll), nll, Answers((), tuple(nlls)))
            prompts = [sample.prompt_ids for sample in self._samples]
            scores = score_labels(model, prompts, self._labels, batch_size=self._batch_size)
        labels = tuple(score.label for score in scores)
        right = sum(label == expected for label, expected in zip(labels, self._expected, strict=True))
        return Judgement(right / len(self._expected), nll, Answers(labels, tuple(nlls)))


def encode_general(tokenizer: PreTrainedTokenizerBase, general: GeneralSet) -> list[EncodedSample]:
    """Cut general text into windows; in each, every token but the first is scored.

    Raises:
        DataError: If no text has two tokens.
    """
    windows: list[EncodedSample] = []
    left = general.tokens
    for number, text in enumerate(general.texts):
        ids = tokenizer.encode(text, add_special_tokens=False)
        for start in range(0, len(ids), general.window_tokens):
            part = tuple(ids[start : start + general.window_tokens])[: left + 1]
            if len(part) > 1 and left > 0:
                windows.append(EncodedSample(f"{number}/{start}", part[:1], part[1:]))
                left -= len(part) - 1
    if not windows:
        raise DataError("general_text has no text of two tokens or more")
    return windows


def perplexity(model: PreTrainedModel, windows: Sequence[EncodedSample]) -> float:
    """Return the perplexity of general text: e to the mean negative log-likelihood of its tokens."""
    with evaluating(model):
        return math.exp(_token_mean(response_nll(model, windows, batch_size=_TEXT_BATCH), windows))


def _token_mean(means: Sequence[float], samples: Sequence[EncodedSample]) -> float:
    counts = [len(sample.response_ids) for sample in samples]
    return sum(mean * count for mean, count in zip(means, counts, strict=True)) / sum(counts)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode for a while; each module then has its own mode back."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
