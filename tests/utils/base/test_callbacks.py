"""Hooks reach who subscribed."""

from __future__ import annotations

import pytest

from utils.base.callbacks import HOOKS, Callbacks


def test_subscribers_hear_in_order_and_only_their_hooks() -> None:
    heard: list[object] = []

    class Listener:
        def on_train_start(self) -> None:
            heard.append("start")

        other = on_train_start

    callbacks = Callbacks()
    callbacks.run("on_train_start")  # nobody listens
    assert set(callbacks.get_registered_actions()) == set(HOOKS)
    callbacks.subscribe(Listener())
    callbacks.register_action("on_train_start", "mine", lambda: heard.append("mine"))
    callbacks.register_action("on_val_end", "args", lambda *args, **words: heard.append((args, words)))
    callbacks.run("on_train_start")
    callbacks.run("on_val_end", 1, two=2)
    assert heard == ["start", "mine", ((1,), {"two": 2})]
    assert [name for name, _ in callbacks.get_registered_actions("on_train_start")] == ["Listener", "mine"]


def test_mistakes_are_said() -> None:
    with pytest.raises(ValueError, match="on_train_start"):
        Callbacks().run("on_trian_start")
    with pytest.raises(ValueError, match="no hook"):
        Callbacks().register_action("x", "", print)
    with pytest.raises(ValueError, match="callable"):
        Callbacks().register_action("on_val_end", "x", 3)
