from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sparsegate.errors import DeltaError, RegistryError, UsageError
from sparsegate.files import sha256_bytes
from sparsegate.registry import promotion
from sparsegate.registry.connection import connect
from sparsegate.registry.package import ServingSpec, read_package, write_package
from sparsegate.registry.promotion import Champion, champion, check_model_name, promote, register, verify_readback
from sparsegate.registry.tracking import open_run

SPEC = ServingSpec(
    task="classification",
    base_source="/models/base",
    base_sha256=None,
    base_digest="b" * 64,
    labels=("refund", "crash"),
    system_prompt=None,
    max_tokens=64,
    max_new_tokens=8,
    trust_remote_code=False,
    delta_sha256="",
    sparsegate_version="0.1.0",
)


def make_package(folder: Path, content: bytes = b"delta") -> Path:
    folder.mkdir(parents=True)
    delta = folder / "trained.safetensors"
    delta.write_bytes(content)
    write_package(folder / "package", replace(SPEC, delta_sha256=sha256_bytes(content)), delta=delta)
    return folder / "package"


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('registry') / 'mlflow.db'}"


@pytest.fixture(scope="module")
def run_id(uri: str) -> str:
    return open_run(uri, "registry", run_name="r", tags={})


@pytest.fixture
def name(request: pytest.FixtureRequest) -> str:
    return str(request.node.originalname)[:60]


@pytest.fixture
def store(uri: str, run_id: str, name: str, tmp_path: Path) -> Callable[..., int]:
    """Register a package whose delta holds the run key."""

    def register_one(run_key: str = "k1") -> int:
        folder = tmp_path / f"made-{run_key}"
        package = folder / "package" if folder.exists() else make_package(folder, run_key.encode())
        return register(
            uri,
            name=name,
            run_id=run_id,
            package=package,
            input_example=["where is my refund?"],
            tags={"verdict": "PASS"},
            run_key=run_key,
        )

    return register_one


def model_folder(uri: str, name: str, version: int) -> Path:
    return Path(connect(uri).get_model_version_download_uri(name, str(version)).removeprefix("file://"))


def test_a_version_has_tags_signature_example_and_no_alias(uri: str, name: str, run_id: str, store: Any) -> None:
    import mlflow

    version = store()
    stored = connect(uri).get_model_version(name, str(version))
    assert (version, stored.status, stored.run_id, stored.aliases) == (1, "READY", run_id, [])
    assert stored.tags == {
        "verdict": "PASS",
        "sparsegate.run_key": "k1",
        "sparsegate.delta_sha256": sha256_bytes(b"k1"),
        "sparsegate.spec_sha256": stored.tags["sparsegate.spec_sha256"],
    }
    model = mlflow.models.Model.load(str(model_folder(uri, name, version)))
    assert model.signature.inputs.input_names() == ["prompt"]
    assert model.signature.outputs.input_names() == ["response", "log_probability"]
    assert model.load_input_example()["prompt"].tolist() == ["where is my refund?"]
    assert connect(uri).get_logged_model(model.model_id).source_run_id == run_id


def test_no_file_of_a_version_is_a_pickle(uri: str, name: str, store: Any) -> None:
    folder = model_folder(uri, name, store())
    files = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    assert files == [
        "MLmodel",
        "artifacts/package/delta.safetensors",
        "artifacts/package/spec.json",
        "conda.yaml",
        "input_example.json",
        "python_env.yaml",
        "requirements.txt",
        "serving.py",
        "serving_input_example.json",
    ]
    assert "python_model:" not in (folder / "MLmodel").read_text()


def test_requirements_are_pinned_without_local_versions(uri: str, name: str, store: Any) -> None:
    lines = (model_folder(uri, name, store()) / "requirements.txt").read_text().split()
    assert lines[0] == "sparsegate==0.1.0"
    assert {line.split("==")[0] for line in lines} >= {"torch", "transformers", "mlflow"}
    assert not any("+" in line for line in lines)


def test_the_same_run_key_gives_the_same_version_and_another_key_a_new_one(uri: str, name: str, store: Any) -> None:
    assert (store("k1"), store("k1"), store("k2"), store("k1")) == (1, 1, 2, 1)
    assert len(connect(uri).search_model_versions(f"name = '{name}'")) == 2


def test_a_failed_upload_leaves_no_version_and_the_next_try_makes_one(
    uri: str, name: str, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    def fail(*_: object, **__: object) -> None:
        raise OSError("disk full")

    with monkeypatch.context() as broken:
        broken.setattr(mlflow.MlflowClient, "log_model_artifacts", fail)
        with pytest.raises(RegistryError, match="disk full"):
            store()
    client = connect(uri)
    assert client.search_model_versions(f"name = '{name}'") == []
    experiment = client.get_experiment_by_name("registry").experiment_id
    newest = client.search_logged_models([experiment], max_results=1)[0]
    assert newest.status == "FAILED"
    assert store() == 1


def test_a_lost_answer_does_not_double_the_version(
    uri: str, name: str, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    create = mlflow.MlflowClient.create_model_version

    def create_and_lose(*args: Any, **kwargs: Any) -> None:
        create(*args, **kwargs)
        raise ConnectionResetError("connection reset")

    with monkeypatch.context() as broken:
        broken.setattr(mlflow.MlflowClient, "create_model_version", create_and_lose)
        assert store() == 1
    assert store() == 1
    assert len(connect(uri).search_model_versions(f"name = '{name}'")) == 1


def test_registering_leaves_mlflow_global_state_and_stdout_alone(
    store: Any, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    import mlflow

    monkeypatch.chdir(tmp_path)
    before = (mlflow.get_tracking_uri(), mlflow.get_registry_uri(), os.environ.get("MLFLOW_TRACKING_URI"))
    store()
    assert (mlflow.get_tracking_uri(), mlflow.get_registry_uri(), os.environ.get("MLFLOW_TRACKING_URI")) == before
    assert mlflow.active_run() is None
    assert capfd.readouterr().out == ""
    assert [path.name for path in tmp_path.iterdir()] == ["made-k1"]


@pytest.mark.parametrize("bad", ["", "a/b", "a:b", "it's", "..", " x", 'a"b', "a\nb"])
def test_a_name_that_cannot_be_registered_is_refused(bad: str) -> None:
    with pytest.raises(UsageError, match=r"registry\.name"):
        check_model_name(bad)


def test_a_damaged_package_is_not_registered(uri: str, name: str, run_id: str, tmp_path: Path) -> None:
    package = make_package(tmp_path / "made")
    (package / "delta.safetensors").write_bytes(b"other")
    with pytest.raises(DeltaError):
        register(uri, name=name, run_id=run_id, package=package, input_example=["x"], tags={}, run_key="k")


def test_there_is_no_champion_without_model_or_alias(uri: str, name: str, store: Any, tmp_path: Path) -> None:
    assert champion(uri, name, "champion", download_to=tmp_path / "got") is None
    store()
    assert champion(uri, name, "champion", download_to=tmp_path / "got") is None


def test_the_champion_comes_with_its_verified_package(
    uri: str, name: str, run_id: str, store: Any, tmp_path: Path
) -> None:
    promote(uri, name, store(), "champion", expected=None)
    found = champion(uri, name, "champion", download_to=tmp_path / "got")
    assert found is not None
    assert found == Champion(name, 1, run_id, tmp_path / "got" / "version-1", found.tags)
    assert found.tags["verdict"] == "PASS"
    assert read_package(found.package).delta_sha256 == sha256_bytes(b"k1")
    (found.package / "left over").write_text("")
    assert champion(uri, name, "champion", download_to=tmp_path / "got") == found
    assert [path.name for path in (tmp_path / "got").iterdir()] == ["version-1"]


def test_a_registry_that_fails_is_an_error_and_not_a_missing_champion(
    uri: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    from mlflow.exceptions import MlflowException

    def fail(*_: object) -> None:
        raise MlflowException("server is on fire")

    monkeypatch.setattr(mlflow.MlflowClient, "get_registered_model", fail)
    with pytest.raises(RegistryError, match="server is on fire"):
        champion(uri, name, "champion", download_to=tmp_path)


def test_a_champion_whose_bytes_are_gone_or_changed_is_an_error(
    uri: str, name: str, store: Any, tmp_path: Path
) -> None:
    promote(uri, name, store(), "champion", expected=None)
    package = model_folder(uri, name, 1) / "artifacts" / "package"
    spec = (package / "spec.json").read_text()
    (package / "spec.json").write_text(spec.replace("refund", "rebate"))
    with pytest.raises(RegistryError, match=r"another spec\.json"):
        champion(uri, name, "champion", download_to=tmp_path / "got")
    (package / "spec.json").write_text(spec)
    (package / "delta.safetensors").write_bytes(b"swapped")
    with pytest.raises(RegistryError, match="is damaged"):
        champion(uri, name, "champion", download_to=tmp_path / "got")
    (package / "delta.safetensors").unlink()
    with pytest.raises(RegistryError, match="is damaged"):
        champion(uri, name, "champion", download_to=tmp_path / "got")
    assert list((tmp_path / "got").iterdir()) == []


def test_readback_accepts_the_same_bytes_and_refuses_others(uri: str, name: str, store: Any, tmp_path: Path) -> None:
    version = store()
    verify_readback(uri, name=name, version=version, package=tmp_path / "made-k1" / "package")
    with pytest.raises(RegistryError, match="must not be promoted"):
        verify_readback(uri, name=name, version=version, package=make_package(tmp_path / "other", b"other"))
    with pytest.raises(RegistryError, match="version 9"):
        verify_readback(uri, name=name, version=9, package=tmp_path / "made-k1" / "package")


def aliases(uri: str, name: str) -> dict[str, int]:
    return {alias: int(version) for alias, version in connect(uri).get_registered_model(name).aliases.items()}


def test_promotion_keeps_the_way_back(uri: str, name: str, store: Any) -> None:
    promote(uri, name, store("k1"), "champion", expected=None)
    assert aliases(uri, name) == {"champion": 1}
    promote(uri, name, store("k2"), "champion", expected=1)
    assert aliases(uri, name) == {"champion": 2, "previous_champion": 1}
    promote(uri, name, 2, "champion", expected=1)  # the run was killed after promoting, and resumes
    assert aliases(uri, name) == {"champion": 2, "previous_champion": 1}


def test_promotion_is_refused_when_the_champion_changed_meanwhile(uri: str, name: str, store: Any) -> None:
    for key in ("k1", "k2", "k3"):
        store(key)
    promote(uri, name, 1, "champion", expected=None)
    promote(uri, name, 2, "champion", expected=1)
    for expected in (1, None):
        with pytest.raises(RegistryError, match="is version 2, the candidate was judged against"):
            promote(uri, name, 3, "champion", expected=expected)
    assert aliases(uri, name) == {"champion": 2, "previous_champion": 1}


def test_a_version_that_does_not_exist_is_not_promoted_and_no_alias_moves(uri: str, name: str, store: Any) -> None:
    promote(uri, name, store(), "champion", expected=None)
    with pytest.raises(RegistryError, match="promoting version 7"):
        promote(uri, name, 7, "champion", expected=1)
    assert aliases(uri, name) == {"champion": 1}


def test_a_kill_between_the_two_aliases_leaves_the_old_champion_and_can_be_repeated(
    uri: str, name: str, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow

    promote(uri, name, store("k1"), "champion", expected=None)
    store("k2")
    set_alias = mlflow.MlflowClient.set_registered_model_alias

    def die_at_champion(self: Any, model: str, alias: str, version: str) -> None:
        if alias == "champion":
            raise KeyboardInterrupt
        set_alias(self, model, alias, version)

    with monkeypatch.context() as broken:
        broken.setattr(mlflow.MlflowClient, "set_registered_model_alias", die_at_champion)
        with pytest.raises(KeyboardInterrupt):
            promote(uri, name, 2, "champion", expected=1)
    assert aliases(uri, name)["champion"] == 1
    promote(uri, name, 2, "champion", expected=1)
    assert aliases(uri, name) == {"champion": 2, "previous_champion": 1}


def test_an_alias_that_a_stranger_takes_back_at_once_is_reported(
    uri: str, name: str, store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    store()
    answers = iter([None, 5])
    monkeypatch.setattr(promotion, "_aliased", lambda *_: next(answers))
    with pytest.raises(RegistryError, match="another process moves it"):
        promote(uri, name, 1, "champion", expected=None)


def test_a_description_is_shown_with_the_version_and_cut_to_what_mlflow_holds(
    uri: str, run_id: str, name: str, tmp_path: Path
) -> None:
    package = make_package(tmp_path / "k")
    number = register(
        uri,
        name=name,
        run_id=run_id,
        package=package,
        input_example=["x"],
        tags={},
        run_key="k",
        description="good " * 2000,
    )
    shown = connect(uri).get_model_version(name, str(number)).description
    assert (len(shown), shown[:5], shown[-3:]) == (5000, "good ", "...")
    assert f"sparsegate verify models:/{name}/VERSION" in connect(uri).get_registered_model(name).description
