from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import pytest

from sparsegate.errors import RegistryError, TrackingError
from sparsegate.registry.connection import connect
from sparsegate.registry.tracking import (
    check_tracking,
    end_run,
    lightning_logger,
    log_folder,
    log_metrics,
    log_params,
    open_run,
    set_tags,
)


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("with space") / "mlflow.db"
    open_run(f"sqlite:///{path}", "first", run_name="first", tags={})  # makes the tables, once for all tests
    return path


@pytest.fixture
def uri(database: Path) -> str:
    return f"sqlite:///{database}"


@pytest.fixture
def run_id(uri: str) -> str:
    return open_run(uri, "shared", run_name="a run", tags={"kind": "test"})


def stored(uri: str, run_id: str) -> Any:
    return connect(uri).get_run(run_id)


def test_a_new_run_has_its_name_tags_and_a_place_for_artifacts_beside_the_database(
    uri: str, database: Path, run_id: str
) -> None:
    run = stored(uri, run_id)
    assert (run.info.run_name, run.info.status, run.data.tags["kind"]) == ("a run", "RUNNING", "test")
    assert run.info.artifact_uri.startswith((database.parent / "mlartifacts").as_uri())


def test_a_relative_database_uri_gives_artifacts_an_absolute_place(
    database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(database.parent)
    run = stored("sqlite:///mlflow.db", open_run("sqlite:///mlflow.db", "relative", run_name="r", tags={}))
    assert run.info.artifact_uri.startswith((database.parent / "mlartifacts").as_uri())


def test_a_used_database_passes_the_check(uri: str) -> None:
    check_tracking(uri)


def test_an_ended_run_is_taken_up_again_under_the_same_id(uri: str, run_id: str) -> None:
    end_run(uri, run_id, "FAILED")
    assert stored(uri, run_id).info.status == "FAILED"
    assert open_run(uri, "shared", run_name="ignored", tags={"attempt": "2"}, run_id=run_id) == run_id
    run = stored(uri, run_id)
    assert (run.info.run_name, run.info.status, run.data.tags["attempt"]) == ("a run", "RUNNING", "2")


def test_a_run_that_does_not_exist_or_was_deleted_is_not_taken_up(uri: str, run_id: str) -> None:
    with pytest.raises(TrackingError, match="not found"):
        open_run(uri, "shared", run_name="r", tags={}, run_id="0" * 32)
    connect(uri).delete_run(run_id)
    with pytest.raises(TrackingError, match="was deleted"):
        open_run(uri, "shared", run_name="r", tags={}, run_id=run_id)


def test_a_deleted_experiment_is_refused_with_the_way_to_restore_it(uri: str) -> None:
    client = connect(uri)
    client.delete_experiment(client.create_experiment("gone"))
    with pytest.raises(TrackingError, match="mlflow experiments restore -x"):
        open_run(uri, "gone", run_name="r", tags={})


def test_more_parameters_than_one_request_takes_are_logged_and_long_values_cut(uri: str, run_id: str) -> None:
    log_params(uri, run_id, {**{f"p{i}": i for i in range(230)}, "long": "x" * 7000})
    params = stored(uri, run_id).data.params
    assert len(params) == 231
    assert params["p229"] == "229"
    assert params["long"] == "x" * 5997 + "..."


def test_logging_the_same_parameters_again_is_accepted_and_other_values_are_not(uri: str, run_id: str) -> None:
    log_params(uri, run_id, {"density": 0.1})
    log_params(uri, run_id, {"density": 0.1})
    with pytest.raises(RegistryError, match="logging parameters"):
        log_params(uri, run_id, {"density": 0.2})
    assert stored(uri, run_id).data.params == {"density": "0.1"}


def test_metrics_and_tags_are_stored(uri: str, run_id: str) -> None:
    log_metrics(uri, run_id, {"accuracy": 0.75, "broken": math.nan}, step=3)
    set_tags(uri, run_id, {"verdict": "PASS"})
    run = stored(uri, run_id)
    assert run.data.metrics["accuracy"] == 0.75
    assert math.isnan(run.data.metrics["broken"])
    assert run.data.tags["verdict"] == "PASS"
    assert connect(uri).get_metric_history(run_id, "accuracy")[0].step == 3


def test_a_folder_is_uploaded_under_its_path(uri: str, run_id: str, tmp_path: Path) -> None:
    (tmp_path / "report" / "docs").mkdir(parents=True)
    (tmp_path / "report" / "docs" / "index.html").write_text("<p>")
    log_folder(uri, run_id, tmp_path / "report", "reports")
    assert [entry.path for entry in connect(uri).list_artifacts(run_id, "reports/docs")] == ["reports/docs/index.html"]
    with pytest.raises(RegistryError, match="no folder"):
        log_folder(uri, run_id, tmp_path / "none", "reports")


def test_a_failure_after_the_start_names_what_was_done_and_not_the_credentials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(RegistryError) as raised:
        log_metrics("http://ana:secret@127.0.0.1:9", "run", {"accuracy": 1.0})
    assert str(raised.value).startswith("logging metrics at http://127.0.0.1:9 failed: ")
    assert "secret" not in str(raised.value)
    assert raised.value.__cause__ is None


def test_lightning_logs_into_the_run_and_leaves_it_and_the_global_uri_as_they_were(uri: str, run_id: str) -> None:
    import mlflow
    from lightning.pytorch.loggers import MLFlowLogger

    before = (mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI"))
    logger = lightning_logger(uri, "shared", run_id)
    assert isinstance(logger, MLFlowLogger)
    for step in range(3):
        logger.log_metrics({"train_loss": 1.0 / (step + 1)}, step=step)
    logger.log_hyperparams({"lr": 0.1})
    logger.finalize("success")
    run = stored(uri, run_id)
    assert (logger.version, logger.run_id, logger.name) == (run_id, run_id, run.info.experiment_id)
    assert [point.step for point in connect(uri).get_metric_history(run_id, "train_loss")] == [0, 1, 2]
    assert run.data.params == {"lr": "0.1"}
    assert run.info.status == "RUNNING"
    assert (mlflow.get_tracking_uri(), os.environ.get("MLFLOW_TRACKING_URI")) == before


def test_nothing_is_printed_on_stdout(uri: str, capfd: pytest.CaptureFixture[str]) -> None:
    run_id = open_run(uri, "silent", run_name="r", tags={})
    end_run(uri, run_id, "FINISHED")
    assert capfd.readouterr().out == ""
