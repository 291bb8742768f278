"""What MLflow, ClearML and Comet are sent, by the calls that a stand-in of the package records."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.utils.loggers.conftest import logged, row_of
from utils.loggers.run import COLUMNS, RunInfo

Info = Callable[..., RunInfo]
Warnings = Callable[[], list[str]]
pytestmark = pytest.mark.usefixtures("sketches")


class MissingError(Exception):
    error_code = "RESOURCE_DOES_NOT_EXIST"


@pytest.fixture
def mlflow(fake: Callable[..., Any]) -> Any:
    package = fake("mlflow", "entities", "exceptions")
    package.exceptions.MlflowException = MissingError
    package.is_tracking_uri_set.return_value = True
    package.entities.Metric = package.entities.Param = lambda *parts: parts
    package.MlflowClient.return_value.get_experiment_by_name.return_value = None
    package.MlflowClient.return_value.create_run.return_value.info.run_id = "abc"
    return package


@pytest.fixture
def clearml(fake: Callable[..., Any]) -> Any:
    package = fake("clearml", "binding", "binding.environ_bind")
    package.Task.init.return_value.id = "task7"
    return package


@pytest.fixture
def comet(fake: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("COMET_DISABLE_AUTO_LOGGING", "1")
    package = fake("comet_ml")
    package.config.get_config.return_value = {"comet.api_key": None}
    package.start.return_value.get_key.return_value = "key9"
    return package


def test_a_new_mlflow_run(mlflow: Any, info: Info, warnings: Warnings) -> None:
    logged(info(loggers=["mlflow"], **{f"option{i}": "x" * 900 for i in range(150)}), range(2))
    client = mlflow.MlflowClient.return_value
    mlflow.MlflowClient.assert_called_once_with(None)  # the address that the environment gives
    client.create_experiment.assert_called_once_with("shapes", artifact_location=None)
    assert client.create_run.call_args.kwargs == {"run_name": "exp3"}
    batches = [call.kwargs for call in client.log_batch.call_args_list]
    assert all(call.args == ("abc",) for call in client.log_batch.call_args_list)
    sizes = [len(batch["params"]) for batch in batches if "params" in batch]
    assert len(sizes) == 2 and sizes[0] == 100, "a server takes a hundred parameters at once"
    params = [pair for batch in batches[:2] for pair in batch["params"]]
    assert {("hyp/lr0", "0.01"), ("epochs", "5"), ("option7", "x" * 500)} <= set(params)
    points = [(name, value, step) for batch in batches[2:] for name, value, _, step in batch["metrics"]]
    assert [step for name, _, step in points if name == COLUMNS[0]] == [0, 1]
    assert ("metrics/mAP_0.5-0.95", pytest.approx(1.06), 1) in points and ("best/recall", 0.2, 1) in points
    assert {Path(call.args[1]).name for call in client.log_artifact.call_args_list} == {"labels.jpg", "results.png"}
    client.set_terminated.assert_called_once_with("abc", "FINISHED")
    assert not warnings() and (info().folder / "mlflow.id").read_text() == "abc 1\n"


@pytest.mark.parametrize("known, ids", [(True, "abc 2\n"), (False, "new 2\n")])
def test_a_resumed_mlflow_run_goes_on_where_the_server_has_it(mlflow: Any, info: Info, known: bool, ids: str) -> None:
    logged(info(loggers=["mlflow"]), range(2))
    client = mlflow.MlflowClient.return_value
    client.log_batch.reset_mock()
    client.create_run.return_value.info.run_id = "new"
    client.update_run.side_effect = None if known else MissingError("gone")
    logged(info([row_of(0), row_of(1)], loggers=["mlflow"], resume="last.pt"), range(2, 3))
    client.update_run.assert_called_with("abc", status="RUNNING")
    points = [point for call in client.log_batch.call_args_list for point in call.kwargs.get("metrics", [])]
    assert [step for name, _, _, step in points if name == COLUMNS[0]] == ([2] if known else [0, 1, 2])
    assert (info().folder / "mlflow.id").read_text() == ids


def test_without_an_address_mlflow_has_a_database_beside_the_runs(mlflow: Any, info: Info) -> None:
    def opened(address: str) -> Any:
        Path(address.removeprefix("sqlite:///")).touch()
        return mlflow.MlflowClient.return_value

    mlflow.is_tracking_uri_set.return_value = False
    mlflow.MlflowClient.side_effect = opened
    logged(info(loggers=["mlflow"]), range(1))
    first, second = (Path(call.args[0].removeprefix("sqlite:///")) for call in mlflow.MlflowClient.call_args_list)
    assert first != second == (info().folder.parent / "mlflow.db").resolve() and second.exists() and not first.exists()
    made = mlflow.MlflowClient.return_value.create_experiment.call_args.kwargs
    assert made["artifact_location"].endswith("/shapes/mlruns")


def test_a_clearml_task_patches_nothing(clearml: Any, info: Info, warnings: Warnings) -> None:
    logged(info(loggers=["clearml"]), range(2))
    given = clearml.Task.init.call_args.kwargs
    assert (given["project_name"], given["task_name"]) == ("shapes", "exp3")
    assert not any(value for name, value in given.items() if name.startswith("auto_"))
    assert given["continue_last_task"] is False and given["reuse_last_task_id"] is False
    clearml.binding.environ_bind.PatchOsFork.patch_fork.assert_called_once_with(None)
    task = clearml.Task.init.return_value
    assert {call.kwargs["name"]: call.args[0] for call in task.connect.call_args_list}["hyp"]["lr0"] == 0.01
    points = [call.args for call in task.get_logger().report_scalar.call_args_list]
    assert ("metrics", "mAP_0.5:0.95", pytest.approx(1.06), 1) in points and len(points) == 2 * 13
    assert task.get_logger().report_image.call_args.args == ("results", "results.png", 1)
    task.get_logger().report_single_value.assert_any_call("best/precision", 0.1)
    assert task.close.called and not task.mark_stopped.called and not warnings()


def test_a_broken_clearml_task_is_stopped_and_goes_on(clearml: Any, info: Info) -> None:
    logged(info(loggers=["clearml"]), range(1), ended=False)
    task = clearml.Task.init.return_value
    assert task.mark_stopped.called and task.close.called
    task.get_logger().report_scalar.reset_mock()
    logged(info([row_of(0)], loggers=["clearml"], resume="last.pt"), range(1, 2))
    given = clearml.Task.init.call_args.kwargs
    assert given["reuse_last_task_id"] == "task7" and given["continue_last_task"] == 0
    assert given["continue_last_task"] is not False, "0 is a first epoch, False would begin anew"
    assert {call.args[3] for call in task.get_logger().report_scalar.call_args_list} == {1}


@pytest.mark.parametrize("key, online", [(None, False), ("secret", None)])
def test_a_comet_experiment_watches_nothing_and_is_resumed(comet, info, warnings, key, online):
    comet.config.get_config.return_value = {"comet.api_key": key}
    logged(info(loggers=["comet"]), range(2))
    given = comet.start.call_args.kwargs
    assert (given["project_name"], given["mode"], given["experiment_key"]) == ("shapes", "create", None)
    assert given["online"] is online
    settings = comet.ExperimentConfig.call_args.kwargs
    assert not any(value for name, value in settings.items() if name.startswith(("auto_", "log_")))
    experiment = comet.start.return_value
    assert experiment.log_parameters.call_args.args[0]["hyp/lr0"] == 0.01
    assert [call.kwargs["step"] for call in experiment.log_metrics.call_args_list] == [0, 1]
    assert experiment.log_metrics.call_args.args[0]["metrics/mAP_0.5"] == pytest.approx(1.05)
    assert experiment.log_image.call_args.kwargs == {"name": "results", "step": 1}
    assert experiment.log_others.call_args.args[0]["best/recall"] == 0.2
    assert experiment.end.called and not warnings()
    experiment.log_metrics.reset_mock()
    logged(info([row_of(0), row_of(1)], loggers=["comet"], resume="last.pt"), [2])
    given = comet.start.call_args.kwargs
    assert (given["mode"], given["experiment_key"]) == ("get_or_create", "key9")
    assert [call.kwargs["step"] for call in experiment.log_metrics.call_args_list] == [2]
