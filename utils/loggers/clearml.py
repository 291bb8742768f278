"""ClearML, online or with CLEARML_OFFLINE_MODE=1."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

from utils.loggers.service import Kind, Service


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
