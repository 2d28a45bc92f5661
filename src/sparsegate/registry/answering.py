"""Turns a package into something that answers: the pinned base, the delta on top, and prompts in, a table out."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pandas as pd

from sparsegate.errors import ModelError
from sparsegate.evaluation.predictor import Predictor
from sparsegate.models import load, resolve
from sparsegate.registry.package import DELTA_FILE, ServingSpec, read_package
from sparsegate.sparse.delta import Delta, apply_delta, read_delta

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH_SIZE = 16


class Answering(NamedTuple):
    """A model that answers as a version does.

    Args:
        spec: The version's.
        delta: Its delta, which is applied to the model.
        model: The model.
        tokenizer: Its tokenizer.
        predictor: Answers prompts with them.
    """

    spec: ServingSpec
    delta: Delta
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    predictor: Predictor


def load_package(folder: Path) -> Answering:
    """Fetch the base of a package, check it, and apply the delta.

    Raises:
        DataError: If the package is not whole.
        DeltaError: If its delta is damaged, or is not of this base.
        ModelError: If the base is not the one that the delta was trained on.
    """
    spec = read_package(folder)
    base = resolve(spec.base_source, sha256=spec.base_sha256, trust_remote_code=spec.trust_remote_code)
    if base.digest != spec.base_digest:
        raise ModelError(
            f"base model {spec.base_source} has digest {base.digest}, the version was trained on"
            f" {spec.base_digest}; put the original files back"
        )
    model, tokenizer = load(base.folder, trust_remote_code=spec.trust_remote_code)
    delta = read_delta(folder / DELTA_FILE)
    apply_delta(model, delta)
    return Answering(spec, delta, model, tokenizer, make_predictor(spec, model, tokenizer))


def make_predictor(
    spec: ServingSpec, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = BATCH_SIZE
) -> Predictor:
    """Return what answers prompts as a spec says."""
    return Predictor(
        model,
        tokenizer,
        task=spec.task,
        labels=spec.labels,
        system_prompt=spec.system_prompt,
        max_tokens=spec.max_tokens,
        max_new_tokens=spec.max_new_tokens,
        batch_size=batch_size,
    )


def answer_frame(answering: Answering, prompts: pd.DataFrame | Sequence[str]) -> pd.DataFrame:
    """Answer each prompt.

    Args:
        answering: The model.
        prompts: A frame with a column ``prompt``, or a list of prompts.

    Returns:
        One row for each prompt, in order: ``response``, and ``log_probability`` for classification.
    """
    texts = prompts["prompt"] if isinstance(prompts, pd.DataFrame) else prompts
    answers = answering.predictor.predict([str(text) for text in texts])
    columns: dict[str, list[Any]] = {"response": [answer.response for answer in answers]}
    if answering.spec.task == "classification":
        columns["log_probability"] = [answer.log_probability for answer in answers]
    return pd.DataFrame(columns)
