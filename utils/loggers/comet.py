"""Comet, online with an API key and offline without one."""

from __future__ import annotations

import os
from typing import Any

from utils.base.log import LOGGER
from utils.base.paths import shown
from utils.loggers.service import Kind, Service

_QUIET = dict.fromkeys(
    ("log_code", "log_graph", "parse_args", "log_git_metadata", "log_git_patch", "log_env_details",
     "auto_output_logging", "auto_param_logging", "auto_metric_logging", "auto_log_co2"), False
)  # fmt: skip


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
