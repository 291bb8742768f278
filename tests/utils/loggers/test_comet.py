"""What Comet is told."""

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
def comet(fake: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("COMET_DISABLE_AUTO_LOGGING", "1")
    package = fake("comet_ml")
    package.config.get_config.return_value = {"comet.api_key": None}
    package.start.return_value.get_key.return_value = "key9"
    return package


def run_of(run: RunInfo, tell: Tell, epochs: range) -> None:
    callbacks = Callbacks()
    subscribe_loggers(callbacks, run)
    tell(callbacks, epochs)


@pytest.mark.parametrize("key, online", [(None, False), ("secret", None)])
def test_an_experiment_that_watches_nothing(
    comet: Any, info: Info, tell: Tell, said: Callable[[], list[str]], key: str | None, online: bool | None
) -> None:
    comet.config.get_config.return_value = {"comet.api_key": key}
    run_of(info(loggers=["comet"]), tell, range(2))
    words = comet.start.call_args.kwargs
    assert (words["project_name"], words["mode"], words["experiment_key"]) == ("shapes", "create", None)
    assert words["online"] is online
    settings = comet.ExperimentConfig.call_args.kwargs
    assert not any(value for name, value in settings.items() if name.startswith(("auto_", "log_")))
    experiment = comet.start.return_value
    assert experiment.log_parameters.call_args.args[0]["hyp/lr0"] == 0.01
    assert [call.kwargs["step"] for call in experiment.log_metrics.call_args_list] == [0, 1]
    assert experiment.log_metrics.call_args.args[0]["metrics/mAP_0.5"] == pytest.approx(1.05)
    assert experiment.log_image.call_args.kwargs == {"name": "results", "step": 1}
    assert experiment.log_others.call_args.args[0]["best/recall"] == 0.2
    assert experiment.end.called and not said()


def test_a_resumed_run_is_the_same_experiment(
    comet: Any, info: Info, tell: Tell, row: Callable[[int], list[float]]
) -> None:
    run_of(info(loggers=["comet"]), tell, range(1))
    comet.start.return_value.log_metrics.reset_mock()
    run_of(info([row(0)], loggers=["comet"], resume="last.pt"), tell, range(1, 2))
    words = comet.start.call_args.kwargs
    assert (words["mode"], words["experiment_key"]) == ("get_or_create", "key9")
    assert [call.kwargs["step"] for call in comet.start.return_value.log_metrics.call_args_list] == [1]
