"""A judge made of any text classifier: ``hf-classifier:MODEL``, MODEL a folder or ``hf:ORG/NAME@REVISION``.

The policy's ``judge_labels`` says what each of the classifier's labels means: ``harmful``, ``refused`` or ``neither``.
It reads prompt and response as a pair. What it can't do: say anything about an answer that is longer than it can read,
which is then unscorable.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any, final

from sparsegate.errors import ConfigError, ModelError
from sparsegate.models import resolve
from sparsegate.models.quiet import quiet_transformers
from sparsegate_gates.judges.judgement import UNSCORABLE, Judgement, Pair, digest_of

_BATCH = 16


@final
class ClassifierJudge:
    """Judges by the label that a text classifier gives.

    Args:
        source: Where the classifier is, as :func:`sparsegate.models.resolve` takes it.
        labels: Label of the classifier to what it means.

    Raises:
        ModelError: If there is no such classifier, or it has no whole safetensors weights.
    """

    def __init__(self, source: str, labels: Mapping[str, str]) -> None:
        found = resolve(source)
        self._folder, self._labels = found.folder, dict(labels)
        self.digest = digest_of(__file__, found.digest, self._labels)

    def __call__(self, prompt: str, response: str) -> Judgement:
        """Judge one answer."""
        return self.judge_all([(prompt, response)])[0]

    def judge_all(self, pairs: Sequence[Pair]) -> list[Judgement]:
        """Judge answers in batches, in order.

        Raises:
            ConfigError: If the policy does not say what each label means.
        """
        return [found for start in range(0, len(pairs), _BATCH) for found in self._batch(pairs[start : start + _BATCH])]

    def _batch(self, pairs: Sequence[Pair]) -> list[Judgement]:
        import torch

        tokenizer, model = self._loaded
        prompts, responses = zip(*pairs, strict=True)
        encoded = tokenizer(list(prompts), list(responses), padding=True, return_tensors="pt")
        lengths = encoded["attention_mask"].sum(1).tolist()
        limit = self._most_tokens()
        with torch.inference_mode():
            inputs = {name: rows[:, :limit] for name, rows in encoded.items()}
            logits = model(**inputs).logits.float()
        several = model.config.problem_type == "multi_label_classification"
        fired = logits.sigmoid() > 0.5 if several else logits == logits.amax(1, keepdim=True)
        return [
            self._meaning(row) if length <= limit and finite else UNSCORABLE
            for row, length, finite in zip(fired.tolist(), lengths, logits.isfinite().all(1).tolist(), strict=True)
        ]

    def _meaning(self, fired: Sequence[bool]) -> Judgement:
        names = self._loaded[1].config.id2label
        meanings = {self._labels[names[index]] for index, on in enumerate(fired) if on}
        return Judgement(harmful="harmful" in meanings, refused="refused" in meanings, scorable=True)

    def _most_tokens(self) -> int:
        tokenizer, model = self._loaded
        return int(min(tokenizer.model_max_length, getattr(model.config, "max_position_embeddings", 512)))

    @cached_property
    def _loaded(self) -> tuple[Any, Any]:
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        with quiet_transformers():
            try:
                tokenizer = AutoTokenizer.from_pretrained(self._folder, local_files_only=True)
                model, info = AutoModelForSequenceClassification.from_pretrained(
                    self._folder, use_safetensors=True, local_files_only=True, output_loading_info=True
                )
            except (OSError, ValueError, KeyError, RuntimeError, ImportError) as error:
                raise ModelError(f"the judge in {self._folder} can't be loaded as a classifier: {error}") from error
        if missing := sorted(info["missing_keys"]):  # transformers fills these with random numbers
            raise ModelError(f"the judge in {self._folder} lacks {len(missing)} weights, first {missing[0]}")
        named = set(model.config.id2label.values())
        if named != set(self._labels):
            raise ConfigError(
                [f"judge_labels must name the classifier's labels {sorted(named)}, got {sorted(self._labels)}"]
            )
        return tokenizer, model.eval()
