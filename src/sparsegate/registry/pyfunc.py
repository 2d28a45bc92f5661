"""The model folder that MLflow stores: the package, the serving code and a signature, without a single pickle."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from packaging.version import Version

from sparsegate.contracts import Task
from sparsegate.registry.connection import quiet_mlflow
from sparsegate.registry.package import read_package

PACKAGE_PATH = "artifacts/package"
SERVING_CODE = Path(__file__).with_name("serving.py")
# what answers depend on; sparsegate itself brings the rest
_PINNED = ("torch", "transformers", "safetensors", "gguf", "pandas", "mlflow")


def save_pyfunc(folder: Path, package: Path, *, input_example: Sequence[str], model: Any = None) -> None:
    """Write the MLflow model folder of a package. Nothing is loaded, inferred or run.

    Args:
        folder: Folder to write; must not exist.
        package: Serving folder as :func:`write_package` leaves it.
        input_example: Prompts kept as the version's example.
        model: MLflow's ``Model`` with the ids of run and logged model; None makes one without.

    Raises:
        DataError: If the package is not whole.
        DeltaError: If its delta is not the one it names.
    """
    spec = read_package(package)
    with tempfile.TemporaryDirectory() as scratch, quiet_mlflow():
        import mlflow.pyfunc
        import pandas as pd

        # MLflow names the artifact's folder after its source
        source = Path(scratch) / Path(PACKAGE_PATH).name
        shutil.copytree(package, source)
        mlflow.pyfunc.save_model(
            folder,
            python_model=SERVING_CODE,
            artifacts={"package": str(source)},
            signature=_signature(spec.task),
            input_example=pd.DataFrame({"prompt": list(input_example)}),
            pip_requirements=requirements(spec.sparsegate_version),
            mlflow_model=model,
        )


def requirements(sparsegate_version: str) -> list[str]:
    """Return the pinned requirements of a version; ``sparsegate`` must come from an index or be installed already."""
    # .public: a local version such as 2.13.0+cpu is on no index
    pins = [f"{name}=={Version(version(name)).public}" for name in _PINNED]
    return [f"sparsegate=={sparsegate_version}", *pins]


def _signature(task: Task) -> Any:
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, Schema

    outputs = [ColSpec("string", "response")]
    if task == "classification":
        outputs.append(ColSpec("double", "log_probability"))
    return ModelSignature(inputs=Schema([ColSpec("string", "prompt")]), outputs=Schema(outputs))
