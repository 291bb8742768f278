"""The classes of a data set by name: what `names` may be, and which class a name in somebody's annotations means."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.base.config import DataConfig
from utils.base.files import MIB, decoded, folded, printable, read_bytes

# a list, a mapping from 0, 1, 2 ... to name, a data YAML, or a text file with one name a line (classes.txt, obj.names)
Names = Sequence[str] | Mapping[int, str] | Mapping[str, str] | str | Path


def class_names(names: Names) -> tuple[str, ...]:
    """The names in class order. Raises ValueError where they are none, or their numbers have gaps."""
    if isinstance(names, (str, Path)):
        return _from_file(Path(names))
    if isinstance(names, Mapping):
        numbered = {str(number): name for number, name in names.items()}
        if set(numbered) != {str(number) for number in range(len(names))}:
            raise ValueError(f"names: number the classes 0 to {len(names) - 1} without gaps, not {list(names)!r:.80}")
        names = [numbered[str(number)] for number in range(len(names))]
    listed = list(names)
    if not listed or any(type(name) not in (str, int) for name in listed):
        raise ValueError(f"names: give the classes' names in order, as in ['bolt', 'nut'], not {listed!r:.80}")
    return tuple(map(str, listed))


def _from_file(file: Path) -> tuple[str, ...]:
    """Names of a data YAML, or the lines of any other file."""
    if file.suffix.lower() in (".yaml", ".yml"):
        return DataConfig.load(file).names
    try:
        text = decoded(read_bytes(file, MIB))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ValueError(f"names: {printable(file)} is no list, data YAML or text file ({reason})") from None
    return class_names([line.strip() for line in text.splitlines() if line.strip()])


class ClassNames:
    """Finds classes by name: as it stands, else without regard to case, spaces, hyphens and underscores."""

    def __init__(self, names: Names) -> None:
        self.names = class_names(names)
        self._exact = {name: number for number, name in reversed(list(enumerate(self.names)))}
        self._folded: dict[str, int | None] = {}
        for name, number in self._exact.items():  # two classes that differ in nothing else are told apart exactly only
            self._folded[folded(name)] = None if folded(name) in self._folded else number
        self._reasons: dict[str, str] = {}

    def find(self, name: str) -> int | None:
        """The class that `name` means, None where it is not listed."""
        number = self._exact.get(name)
        return self._folded.get(folded(name)) if number is None else number

    def unlisted(self, name: str) -> str:
        """Why boxes of this name are dropped, with what comes near and the remedy."""
        if name not in self._reasons:
            known = {folded(known): known for known in reversed(self.names)}
            near = difflib.get_close_matches(folded(name)[:80], known, n=1)
            hint = f"did you mean {known[near[0]]!r}?" if near else "add it to keep them"
            self._reasons[name] = f"called {name[:80]!r}, which is not among the names; {hint}"
        return self._reasons[name]
