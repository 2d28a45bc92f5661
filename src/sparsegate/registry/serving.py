"""The model as MLflow loads it (models from code): this file is copied into the version and run by itself.

Nothing imports it; the version's weights are the delta, applied to the pinned base when the model is loaded.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class SparseModel(PythonModel):  # type: ignore[misc]  # mlflow ships no types
    """Answers prompts: a column ``prompt`` in, ``response`` (and ``log_probability`` for classification) out."""

    def load_context(self, context: Any) -> None:
        """Fetch the base, check it, and apply the delta.

        Raises:
            ModelError: If the base is not the one the delta was trained on.
        """
        from sparsegate.registry.answering import load_package

        self.answering = load_package(Path(context.artifacts["package"]))

    def predict(self, context: Any, model_input: pd.DataFrame, params: dict[str, Any] | None = None) -> pd.DataFrame:
        """Answer each prompt.

        Args:
            context: MLflow's context; not needed after loading.
            model_input: A frame with a column ``prompt``, or a list of prompts.
            params: None are known.

        Returns:
            One row for each prompt, in order.
        """
        from sparsegate.registry.answering import answer_frame

        return answer_frame(self.answering, model_input)


set_model(SparseModel())
