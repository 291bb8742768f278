"""The frame that all scripts share: logging, the command line, one line for the user's mistakes, an exit status."""

from __future__ import annotations

import signal
from collections.abc import Callable, Sequence
from typing import Any

from utils.base.log import LOGGER, Fault, one_line, set_up_logging
from utils.base.options import parse_given
from utils.distributed.processes import is_main, leave


def run_script(
    kind: type[Any],
    story: Callable[[dict[str, Any]], object],
    description: str | None,
    argv: Sequence[str] | None = None,
    stopped: str = "",
) -> int:
    """Read a command line by the options class `kind`, do what it asks for, and return the exit status.

    `story` gets the options that were given, by name. A mistake of the user's is one line: of what the command line
    itself refuses (flags, kinds of values, bounds, choices) with status 2, of all else with status 1. SIGINT, and what
    else raises KeyboardInterrupt, is `stopped` (nothing where it is empty) and 128 plus the signal's number.
    """
    set_up_logging(is_main())
    try:
        story(parse_given(kind, argv, description or ""))
    except (ValueError, OSError, Fault) as error:
        LOGGER.error(one_line(error))
        return 1
    except KeyboardInterrupt as stop:
        if stopped and type(stop) is KeyboardInterrupt:  # others have said what is saved
            LOGGER.warning(stopped)
        return 128 + int(getattr(stop, "signal", signal.SIGINT))
    finally:
        leave()
    return 0
