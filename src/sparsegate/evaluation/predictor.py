"""The deployed interface: what reaches the user for a prompt.

The evaluation and the served model both answer through it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from sparsegate.contracts import Task
from sparsegate.data.template import ChatTemplate
from sparsegate.evaluation.generation import generate
from sparsegate.evaluation.labels import score_labels

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Answer(NamedTuple):
    """One answer; ``log_probability`` (nats) is that of the label's tokens, None for free text."""

    response: str
    log_probability: float | None


class Predictor:
    """Answers prompts with one of the labels (classification) or with generated text.

    Args:
        model: A causal language model in evaluation mode.
        tokenizer: Its tokenizer.
        task: ``classification`` or ``generation``.
        labels: The label words; used for classification only.
        system_prompt: System message put before every prompt, or None.
        max_tokens: Longest prompt in tokens.
        max_new_tokens: Longest generated answer in tokens.
        batch_size: Prompts answered at once.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        task: Task,
        labels: Sequence[str] = (),
        system_prompt: str | None = None,
        max_tokens: int = 512,
        max_new_tokens: int = 128,
        batch_size: int = 32,
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer, system_prompt=system_prompt, max_tokens=max_tokens)
        self._task = task
        self._labels = tuple(labels)
        self._label_tokens = [self._template.encode_response(label) for label in labels]
        self._max_new_tokens = max_new_tokens
        self._batch_size = batch_size

    def predict(self, prompts: Sequence[str], *, progress: Callable[[int], object] | None = None) -> list[Answer]:
        """Answer each prompt, in order.

        Args:
            prompts: What users write.
            progress: Called with the number of prompts done after each batch.
        """
        encoded = [self._template.encode_prompt(prompt) for prompt in prompts]
        if self._task == "classification":
            scores = score_labels(
                self._model, encoded, self._label_tokens, batch_size=self._batch_size, progress=progress
            )
            return [Answer(self._labels[score.label], score.log_probability) for score in scores]
        texts = generate(
            self._model,
            self._tokenizer,
            encoded,
            max_new_tokens=self._max_new_tokens,
            batch_size=self._batch_size,
            progress=progress,
        )
        return [Answer(text.text, None) for text in texts]
