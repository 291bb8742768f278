"""Hooks by name: training and validation announce what happens, and subscribers are called."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

HOOKS = tuple(
    """
    on_pretrain_routine_start on_pretrain_routine_end on_train_start on_train_epoch_start on_train_batch_start
    optimizer_step on_before_zero_grad on_train_batch_end on_train_epoch_end on_val_start on_val_batch_start
    on_val_image_end on_val_batch_end on_val_end on_val_metrics on_fit_epoch_end on_model_save on_train_end
    on_params_update teardown
    """.split()
)


class Callbacks:
    """YOLOv5's hooks. Setting `stop_training` ends training after the current epoch."""

    def __init__(self) -> None:
        self._actions: dict[str, list[tuple[str, Callable[..., Any]]]] = {hook: [] for hook in HOOKS}
        self.stop_training = False

    def register_action(self, hook: str, name: str = "", callback: Callable[..., Any] | None = None) -> None:
        """Call `callback` whenever `hook` happens. Raises ValueError for a hook there is not."""
        if not callable(callback):
            raise ValueError(f"the action for {hook} must be callable, not {callback!r}")
        self.get_registered_actions(hook).append((name, callback))

    def subscribe(self, listener: object) -> None:
        """Register every method of `listener` that is named after a hook."""
        for hook in HOOKS:
            if callable(method := getattr(listener, hook, None)):
                self.register_action(hook, type(listener).__name__, method)

    def get_registered_actions(self, hook: str | None = None) -> Any:
        """Return the (name, callable) pairs of one hook, or of all by hook. Raises ValueError for one there is not."""
        if hook and hook not in self._actions:
            raise ValueError(f"there is no hook {hook!r}; hooks: {', '.join(HOOKS)}")
        return self._actions[hook] if hook else self._actions

    def run(self, hook: str, *args: Any, **kwargs: Any) -> None:
        """Call all subscribers of `hook`, in the order they came. Raises ValueError for a hook there is not."""
        for _, action in self.get_registered_actions(hook):
            action(*args, **kwargs)
