"""MLflow: where MLFLOW_TRACKING_URI says, or a database `mlflow.db` beside the runs."""

from __future__ import annotations

import os
import time
from typing import Any

from utils.loggers.service import Kind, Service

_BATCH = 100  # parameters that a server takes at once
_LONGEST = 500  # characters of a parameter that every server takes


class Mlflow(Service):
    """A run of the experiment that is named after the project."""

    name = "mlflow"
    client: Any

    def connect(self, known: str) -> str:
        """Go on with the run where the server still has it, else begin one."""
        import mlflow
        from mlflow.exceptions import MlflowException

        address, artifacts, beside = None, None, self.run.folder.resolve().parent
        if not mlflow.is_tracking_uri_set():
            file, unfinished = beside / "mlflow.db", beside / f".mlflow.{os.getpid()}.db"
            if not file.exists():  # a new one appears when it is complete: MLflow cannot read half of one
                mlflow.MlflowClient(f"sqlite:///{unfinished.as_posix()}").search_experiments(max_results=1)
                if not file.exists():  # another run may have been quicker
                    unfinished.replace(file)
                unfinished.unlink(missing_ok=True)
            address, artifacts = f"sqlite:///{file.as_posix()}", (beside / "mlruns").as_uri()
        self.client = mlflow.MlflowClient(address)
        if known:
            try:
                self.client.update_run(known, status="RUNNING")
            except MlflowException as error:
                if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                    raise
            else:
                return known
        found = self.client.get_experiment_by_name(self.run.project)
        create = self.client.create_experiment
        number = found.experiment_id if found else create(self.run.project, artifact_location=artifacts)
        return self.client.create_run(number, run_name=self.run.folder.name).info.run_id

    def send(self, kind: Kind, content: Any, epoch: int) -> None:
        """Send parameters, a point a column and artifacts; stores refuse colons in names."""
        from mlflow.entities import Metric, Param

        match kind:
            case "settings":
                flat = {name.replace(":", "-"): str(value)[:_LONGEST] for name, value in self.run.flat().items()}
                params = [Param(name, value) for name, value in flat.items()]
                for begin in range(0, len(params), _BATCH):
                    self.client.log_batch(self.id, params=params[begin : begin + _BATCH])
            case "values" | "best":
                now = int(time.time() * 1000)
                points = [Metric(name.replace(":", "-"), value, now, epoch) for name, value in content.items()]
                self.client.log_batch(self.id, metrics=points)
            case "images":
                for file in content:
                    self.client.log_artifact(self.id, str(file), "pictures")

    def disconnect(self, ended: bool) -> None:
        """Mark the run as finished, or as killed, after which it may go on."""
        self.client.set_terminated(self.id, "FINISHED" if ended else "KILLED")
