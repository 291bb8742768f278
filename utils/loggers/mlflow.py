"""MLflow: where MLFLOW_TRACKING_URI says, or a database `mlflow.db` beside the runs."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from utils.loggers.service import Service

_BATCH = 100  # parameters that a server takes at once
_LONGEST = 500  # characters of a parameter that every server takes


class Mlflow(Service):
    """A run of the experiment that is named after the project."""

    name = "mlflow"
    client: Any

    def connect(self, known: str) -> str:
        """Go on with the run where the server still has it."""
        import mlflow

        elsewhere, beside = mlflow.is_tracking_uri_set(), self.run.folder.resolve().parent
        self.client = mlflow.MlflowClient(None if elsewhere else _database(beside))
        if known and self._reopened(known):
            return known
        if experiment := self.client.get_experiment_by_name(self.run.project):
            number = experiment.experiment_id
        else:
            pictures = None if elsewhere else (beside / "mlruns").as_uri()
            number = self.client.create_experiment(self.run.project, artifact_location=pictures)
        return self.client.create_run(number, run_name=self.run.folder.name).info.run_id

    def _reopened(self, known: str) -> bool:
        from mlflow.exceptions import MlflowException

        try:
            self.client.update_run(known, status="RUNNING")
        except MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False
        return True

    def send_options(self) -> None:
        """As parameters."""
        from mlflow.entities import Param

        values = [Param(_key(name), str(value)[:_LONGEST]) for name, value in self.run.flat().items()]
        for begin in range(0, len(values), _BATCH):
            self.client.log_batch(self._id, params=values[begin : begin + _BATCH])

    def send_scalars(self, values: dict[str, float], epoch: int) -> None:
        """One point a column."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        points = [Metric(_key(name), value, now, epoch) for name, value in values.items()]
        self.client.log_batch(self._id, metrics=points)

    def send_pictures(self, files: Sequence[Path], epoch: int) -> None:
        """As artifacts."""
        for file in files:
            self.client.log_artifact(self._id, str(file), "pictures")

    def disconnect(self, ended: bool) -> None:
        """The run is finished, or killed and may go on."""
        self.client.set_terminated(self._id, "FINISHED" if ended else "KILLED")


def _database(folder: Path) -> str:
    """The address of the folder's mlflow.db. A new one appears when it is complete: MLflow cannot read half of one."""
    import mlflow

    file, unfinished = folder / "mlflow.db", folder / f".mlflow.{os.getpid()}.db"
    if not file.exists():
        mlflow.MlflowClient(f"sqlite:///{unfinished.as_posix()}").search_experiments(max_results=1)
        if not file.exists():  # another run may have been quicker
            unfinished.replace(file)
        unfinished.unlink(missing_ok=True)
    return f"sqlite:///{file.as_posix()}"


def _key(name: str) -> str:
    """A name without the characters that stores refuse."""
    return name.replace(":", "-")
