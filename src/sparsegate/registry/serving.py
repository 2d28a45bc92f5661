"""The model as MLflow loads it (models from code): this file is copied into the version and run by itself.

Nothing imports it; the version's weights are the delta, applied to the pinned base when the model is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel

BATCH_SIZE = 16


class SparseModel(PythonModel):  # type: ignore[misc]  # mlflow ships no types
    """Answers prompts: a column ``prompt`` in, ``response`` (and ``log_probability`` for classification) out."""

    def load_context(self, context: Any) -> None:
        """Fetch the base, check it, and apply the delta.

        Raises:
            ModelError: If the base is not the one the delta was trained on.
        """
        from sparsegate.errors import ModelError
        from sparsegate.evaluation.predictor import Predictor
        from sparsegate.models import load, resolve
        from sparsegate.registry.package import DELTA_FILE, read_package
        from sparsegate.sparse.delta import apply_delta, read_delta

        folder = Path(context.artifacts["package"])
        spec = read_package(folder)
        base = resolve(spec.base_source, sha256=spec.base_sha256, trust_remote_code=spec.trust_remote_code)
        if base.digest != spec.base_digest:
            raise ModelError(
                f"base model {spec.base_source} has digest {base.digest}, the version was trained on"
                f" {spec.base_digest}; put the original files back"
            )
        model, tokenizer = load(base.folder, trust_remote_code=spec.trust_remote_code)
        apply_delta(model, read_delta(folder / DELTA_FILE))
        self.task = spec.task
        self.predictor = Predictor(
            model,
            tokenizer,
            task=spec.task,
            labels=spec.labels,
            system_prompt=spec.system_prompt,
            max_tokens=spec.max_tokens,
            max_new_tokens=spec.max_new_tokens,
            batch_size=BATCH_SIZE,
        )

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Answer each prompt.

        Args:
            context: MLflow's context; not needed after loading.
            model_input: A frame with a column ``prompt``, or a list of prompts.
            params: None are known.

        Returns:
            One row for each prompt, in order.
        """
        prompts = model_input["prompt"] if isinstance(model_input, pd.DataFrame) else model_input
        answers = self.predictor.predict([str(prompt) for prompt in prompts])
        columns: dict[str, list[Any]] = {"response": [answer.response for answer in answers]}
        if self.task == "classification":
            columns["log_probability"] = [answer.log_probability for answer in answers]
        return pd.DataFrame(columns)


set_model(SparseModel())
