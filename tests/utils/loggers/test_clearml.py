"""What ClearML is told."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from utils.base.callbacks import Callbacks
from utils.loggers import subscribe_loggers
from utils.loggers.run import RunInfo

Info = Callable[..., RunInfo]
Tell = Callable[..., None]
pytestmark = pytest.mark.usefixtures("sketches")


@pytest.fixture
def clearml(fake: Callable[..., Any]) -> Any:
    package = fake("clearml", "binding", "binding.environ_bind")
    package.Task.init.return_value.id = "task7"
    return package


def run_of(run: RunInfo, tell: Tell, epochs: range, ended: bool = True) -> None:
    callbacks = Callbacks()
    subscribe_loggers(callbacks, run)
    tell(callbacks, epochs, ended)


def test_a_task_that_patches_nothing(clearml: Any, info: Info, tell: Tell, said: Callable[[], list[str]]) -> None:
    run_of(info(loggers=["clearml"]), tell, range(2))
    words = clearml.Task.init.call_args.kwargs
    assert (words["project_name"], words["task_name"]) == ("shapes", "exp3")
    assert not any(value for name, value in words.items() if name.startswith("auto_"))
    assert words["continue_last_task"] is False and words["reuse_last_task_id"] is False
    clearml.binding.environ_bind.PatchOsFork.patch_fork.assert_called_once_with(None)
    task = clearml.Task.init.return_value
    assert {call.kwargs["name"]: call.args[0] for call in task.connect.call_args_list}["hyp"]["lr0"] == 0.01
    told = [call.args for call in task.get_logger().report_scalar.call_args_list]
    assert ("metrics", "mAP_0.5:0.95", pytest.approx(1.06), 1) in told and len(told) == 2 * 13
    assert task.get_logger().report_image.call_args.args == ("results", "results.png", 1)
    task.get_logger().report_single_value.assert_any_call("best/precision", 0.1)
    assert task.close.called and not task.mark_stopped.called and not said()


def test_a_broken_run_is_stopped_and_goes_on(
    clearml: Any, info: Info, tell: Tell, row: Callable[[int], list[float]]
) -> None:
    run_of(info(loggers=["clearml"]), tell, range(1), ended=False)
    task = clearml.Task.init.return_value
    assert task.mark_stopped.called and task.close.called
    task.get_logger().report_scalar.reset_mock()
    run_of(info([row(0)], loggers=["clearml"], resume="last.pt"), tell, range(1, 2))
    words = clearml.Task.init.call_args.kwargs
    assert words["reuse_last_task_id"] == "task7" and words["continue_last_task"] == 0
    assert words["continue_last_task"] is not False, "0 is a first epoch, False would begin anew"
    assert {call.args[3] for call in task.get_logger().report_scalar.call_args_list} == {1}
