"""MLflow, ClearML and Comet: what each is sent of a run.

MLflow goes where MLFLOW_TRACKING_URI says, or to a database `mlflow.db` beside the runs; ClearML is online, or offline
with CLEARML_OFFLINE_MODE=1; Comet is online with an API key and offline without one.
"""

from __future__ import annotations

import os
import time
from contextlib import suppress
from typing import Any

from utils.base.log import LOGGER
from utils.base.paths import shown
from utils.loggers.service import Kind, Service

_BATCH = 100  # parameters that an MLflow server takes at once
_LONGEST = 500  # characters of a parameter that every one takes
_QUIET = dict.fromkeys(
    ("log_code", "log_graph", "parse_args", "log_git_metadata", "log_git_patch", "log_env_details",
     "auto_output_logging", "auto_param_logging", "auto_metric_logging", "auto_log_co2"), False
)  # fmt: skip


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
                    self.client.log_artifact(self.id, str(file), "images")

    def disconnect(self, ended: bool) -> None:
        """Mark the run as finished, or as killed, after which it may go on."""
        self.client.set_terminated(self.id, "FINISHED" if ended else "KILLED")


class ClearMl(Service):
    """A task that gets what it is sent and patches nothing: no framework, no command line, no output."""

    name = "clearml"
    task: Any

    def connect(self, known: str) -> str:
        """Begin a task, or go on with the one of an interrupted run."""
        from clearml import Task

        self.task = Task.init(
            project_name=self.run.project,
            task_name=self.run.folder.name,
            reuse_last_task_id=known or False,
            continue_last_task=0 if known else False,  # 0: its epochs count from the first run on
            auto_connect_arg_parser=False,
            auto_connect_frameworks=False,
            auto_resource_monitoring=False,
            auto_connect_streams=False,
        )
        with suppress(ImportError, AttributeError):  # a part of ClearML that has no public name
            from clearml.binding.environ_bind import PatchOsFork

            PatchOsFork.patch_fork(None)  # loader processes report nothing, and must not wait for a server
        return self.task.id

    def send(self, kind: Kind, content: Any, epoch: int) -> None:
        """Send parameters, a plot for each first part of a column's name, single values and debug samples."""
        logger = self.task.get_logger()
        match kind:
            case "settings":
                self.task.connect(dict(self.run.options), name="options")
                self.task.connect(dict(self.run.hyp), name="hyp")
            case "values":
                for name, value in content.items():
                    title, _, series = name.rpartition("/")
                    logger.report_scalar(title, series, value, epoch)
            case "best":
                for name, value in content.items():
                    logger.report_single_value(name, value)
            case "images":
                for file in content:
                    logger.report_image(file.stem, file.name, epoch, local_path=str(file))

    def disconnect(self, ended: bool) -> None:
        """Send the rest; a run that was broken off is stopped, not completed."""
        if not ended:
            self.task.mark_stopped()
        self.task.close()


class Comet(Service):
    """An experiment that gets what it is sent and watches nothing by itself."""

    name = "comet"
    experiment: Any

    def connect(self, known: str) -> str:
        """Begin an experiment, or go on with the one of an interrupted run; nobody is asked for a login."""
        os.environ.setdefault("COMET_DISABLE_AUTO_LOGGING", "1")  # read by the import, which patches frameworks
        import comet_ml

        key = comet_ml.config.get_config()["comet.api_key"]
        settings = comet_ml.ExperimentConfig(
            name=self.run.folder.name, offline_directory=str(self.run.folder), display_summary_level=0, **_QUIET
        )
        self.experiment = comet_ml.start(
            project_name=self.run.project,
            experiment_key=known or None,
            mode="get_or_create" if known else "create",
            online=None if key else False,
            experiment_config=settings,
        )
        if not key:
            LOGGER.info(f"comet: no API key (COMET_API_KEY), so this run is kept offline in {shown(self.run.folder)}")
        return self.experiment.get_key()

    def send(self, kind: Kind, content: Any, epoch: int) -> None:
        """Send parameters, a point a column, notes on the experiment and graphics."""
        match kind:
            case "settings":
                self.experiment.log_parameters(self.run.flat())
            case "values":
                self.experiment.log_metrics(content, step=epoch, epoch=epoch)
            case "best":
                self.experiment.log_others(content)
            case "images":
                for file in content:
                    self.experiment.log_image(str(file), name=file.stem, step=epoch)

    def disconnect(self, ended: bool) -> None:
        """Send the rest and finish."""
        self.experiment.end()
