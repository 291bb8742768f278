"""What MLflow is told."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from utils.base.callbacks import Callbacks
from utils.loggers import subscribe_loggers
from utils.loggers.csv import COLUMNS
from utils.loggers.run import RunInfo

Info = Callable[..., RunInfo]
Tell = Callable[..., None]
pytestmark = pytest.mark.usefixtures("sketches")


class Refusal(Exception):
    error_code = "RESOURCE_DOES_NOT_EXIST"


@pytest.fixture
def mlflow(fake: Callable[..., Any]) -> Any:
    package = fake("mlflow", "entities", "exceptions")
    package.exceptions.MlflowException = Refusal
    package.is_tracking_uri_set.return_value = True
    package.entities.Metric = lambda *parts: parts
    package.entities.Param = lambda *parts: parts
    package.MlflowClient.return_value.get_experiment_by_name.return_value = None
    package.MlflowClient.return_value.create_run.return_value.info.run_id = "abc"
    return package


def run_of(info: Info, tell: Tell, epochs: range, **options: Any) -> None:
    callbacks = Callbacks()
    subscribe_loggers(callbacks, info(loggers=["mlflow"], **options))
    tell(callbacks, epochs)


def test_a_new_run(mlflow: Any, info: Info, tell: Tell, said: Callable[[], list[str]]) -> None:
    run_of(info, tell, range(2))
    client = mlflow.MlflowClient.return_value
    mlflow.MlflowClient.assert_called_once_with(None)  # the address that the environment gives
    client.create_experiment.assert_called_once_with("shapes", artifact_location=None)
    assert client.create_run.call_args.kwargs == {"run_name": "exp3"}
    batches = [call.kwargs for call in client.log_batch.call_args_list]
    assert all(call.args == ("abc",) for call in client.log_batch.call_args_list)
    assert ("hyp/lr0", "0.01") in batches[0]["params"] and ("epochs", "5") in batches[0]["params"]
    points = [(name, value, step) for batch in batches[1:] for name, value, _, step in batch["metrics"]]
    assert [step for name, _, step in points if name == COLUMNS[0]] == [0, 1]
    assert ("metrics/mAP_0.5-0.95", pytest.approx(1.06), 1) in points and ("best/recall", 0.2, 1) in points
    assert {Path(call.args[1]).name for call in client.log_artifact.call_args_list} == {"labels.jpg", "results.png"}
    client.set_terminated.assert_called_once_with("abc", "FINISHED")
    assert not said() and (info().folder / "mlflow.id").read_text() == "abc 1\n"


def test_a_server_takes_a_hundred_parameters_at_once(mlflow: Any, info: Info, tell: Tell) -> None:
    run_of(info, tell, range(0), **{f"option{i}": "x" * 900 for i in range(150)})
    sizes = [
        call.kwargs["params"] for call in mlflow.MlflowClient().log_batch.call_args_list if "params" in call.kwargs
    ]
    assert len(sizes) == 2 and max(map(len, sizes)) == 100
    assert max(len(value) for batch in sizes for _, value in batch) == 500


@pytest.mark.parametrize("known, ids", [(True, "abc 2\n"), (False, "new 2\n")])
def test_a_resumed_run_goes_on_where_the_server_has_it(
    mlflow: Any, info: Info, tell: Tell, row: Callable[[int], list[float]], known: bool, ids: str
) -> None:
    run_of(info, tell, range(2))
    client = mlflow.MlflowClient.return_value
    client.log_batch.reset_mock()
    client.create_run.return_value.info.run_id = "new"
    client.update_run.side_effect = None if known else Refusal("gone")
    run_of(info, tell, range(2, 3), history=[row(0), row(1)], resume="last.pt")
    client.update_run.assert_called_with("abc", status="RUNNING")
    points = [point for call in client.log_batch.call_args_list for point in call.kwargs.get("metrics", [])]
    assert [step for name, _, _, step in points if name == COLUMNS[0]] == ([2] if known else [0, 1, 2])
    assert (info().folder / "mlflow.id").read_text() == ids


def test_without_an_address_there_is_a_database_beside_the_runs(mlflow: Any, info: Info, tell: Tell) -> None:
    mlflow.is_tracking_uri_set.return_value = False
    beside = info().folder.parent
    mlflow.MlflowClient.side_effect = lambda address: (
        Path(address.removeprefix("sqlite:///")).touch() or mlflow.MlflowClient.return_value
    )
    run_of(info, tell, range(1))
    opened = [Path(call.args[0].removeprefix("sqlite:///")) for call in mlflow.MlflowClient.call_args_list]
    assert len(opened) == 2 and opened[0] != opened[1] == (beside / "mlflow.db").resolve()
    assert opened[1].exists() and not opened[0].exists()
    made = mlflow.MlflowClient.return_value.create_experiment.call_args.kwargs
    assert made["artifact_location"].endswith("/shapes/mlruns")
