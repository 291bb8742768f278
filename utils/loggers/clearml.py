"""ClearML, online or with CLEARML_OFFLINE_MODE=1."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from utils.loggers.service import Service


class ClearMl(Service):
    """A task that gets what it is told and patches nothing: no framework, no command line, no output."""

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
        _leave_forks_alone()
        return self.task.id

    def send_options(self) -> None:
        """As parameters of the task."""
        self.task.connect(dict(self.run.options), name="options")
        self.task.connect(dict(self.run.hyp), name="hyp")

    def send_scalars(self, values: dict[str, float], epoch: int) -> None:
        """One point a column, in a plot for each first part of a name."""
        for name, value in values.items():
            title, _, series = name.rpartition("/")
            self.task.get_logger().report_scalar(title, series, value, epoch)

    def send_best(self, values: dict[str, float], epoch: int) -> None:
        """As single values."""
        for name, value in values.items():
            self.task.get_logger().report_single_value(name, value)

    def send_pictures(self, files: Sequence[Path], epoch: int) -> None:
        """Among the debug samples."""
        for file in files:
            self.task.get_logger().report_image(file.stem, file.name, epoch, local_path=str(file))

    def disconnect(self, ended: bool) -> None:
        """Send the rest; a run that was broken off is stopped, not completed."""
        if not ended:
            self.task.mark_stopped()
        self.task.close()


def _leave_forks_alone() -> None:
    """Loader processes of ours report nothing, and must not wait for a server when they end."""
    with suppress(ImportError, AttributeError):  # a part of ClearML that has no public name
        from clearml.binding.environ_bind import PatchOsFork

        PatchOsFork.patch_fork(None)
