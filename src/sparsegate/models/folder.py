"""Base models in a local folder."""

from __future__ import annotations

from pathlib import Path

from sparsegate.errors import DataError, ModelError
from sparsegate.files import read_json


def check_model_folder(folder: Path) -> None:
    """Check that a folder holds a configuration and whole safetensors weights.

    Raises:
        ModelError: Saying what is missing.
    """
    if not folder.is_dir():
        raise ModelError(f"model folder {folder} does not exist")
    if not (folder / "config.json").is_file():
        hint = (
            " (this is a PEFT adapter: merge it into its base first)"
            if (folder / "adapter_config.json").exists()
            else ""
        )
        raise ModelError(f"{folder} has no config.json, so it is not a model folder{hint}")
    if not any(folder.glob("*.safetensors")):
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
            raise ModelError(
                f"{folder} has only pickled weights, which can run code when read and are refused; "
                "convert them with save_pretrained, which writes safetensors"
            )
        raise ModelError(f"{folder} has no *.safetensors weights")
    _check_shards(folder)


def _check_shards(folder: Path) -> None:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return
    try:
        shards = sorted(set(read_json(index)["weight_map"].values()))
    except (DataError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{index} is damaged: {error}") from error
    missing = [name for name in shards if not (folder / name).is_file()]
    if missing:
        raise ModelError(
            f"{folder} lacks {len(missing)} of {len(shards)} weight files, first {missing[0]}; copy it again"
        )


def find(location: str) -> Path:
    """Return the absolute path of a local model folder.

    Raises:
        ModelError: If it is not one.
    """
    folder = Path(location).expanduser().resolve()
    if not folder.exists() and location.count("/") == 1 and not location.startswith((".", "/", "~")):
        raise ModelError(f"model folder {folder} does not exist; for a model of the hub write 'hf:{location}'")
    check_model_folder(folder)
    return folder
