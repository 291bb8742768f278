"""Tables of measurements: printed row by row as they come, saved with the machine and the commit they were made on."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import platform
import shutil
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import torch

Value = str | int | float | None
FORMATS = (".md", ".csv", ".json")
ROOT = Path(__file__).resolve().parents[1]


class Table:
    """Rows under fixed columns; a row is printed when it is added.

    Args:
        columns: titles, each with the least width of its column in print.
    """

    def __init__(self, columns: Mapping[str, int]) -> None:
        self.widths = {title: max(len(title), width) for title, width in columns.items()}
        self.rows: list[dict[str, Value]] = []

    def add(self, **row: Value) -> None:
        """Append and print a row, below the titles if it is the first; what it does not name stays empty."""
        unknown = row.keys() - self.widths.keys()
        assert not unknown, f"no columns {unknown}"
        if not self.rows:
            print("  ".join(f"{title:>{width}}" for title, width in self.widths.items()))
        self.rows.append({title: row.get(title) for title in self.widths})
        print("  ".join(f"{shown(row.get(title)):>{width}}" for title, width in self.widths.items()), flush=True)


def shown(value: Value) -> str:
    """A value as people read it: three significant digits, or all that stand before the point."""
    if value is None:
        return "-"
    if not isinstance(value, float) or value == 0 or not math.isfinite(value):
        return str(value)
    return f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"


def machine(device: torch.device, dtype: torch.dtype, threads: int) -> dict[str, str]:
    """Where figures come from: processor, GPU if it is used, threads, precision, PyTorch, commit."""
    facts = {"processor": f"{processor()}, {os.cpu_count()} cores", "threads": str(threads)}
    if device.type == "cuda":
        facts["GPU"] = torch.cuda.get_device_name(device)
    return {**facts, "precision": str(dtype).removeprefix("torch."), "torch": torch.__version__, "commit": commit(ROOT)}


def processor(listing: Path = Path("/proc/cpuinfo")) -> str:
    """Name of the processor, from the kernel's listing where there is one."""
    if listing.is_file():
        for line in listing.read_text().splitlines():
            key, _, name = line.partition(":")
            if key.strip() == "model name":
                return name.strip()
    return platform.processor() or platform.machine()


def commit(folder: Path) -> str:
    """Short hash of the checkout and whether files differ from it; "unknown" outside of one, or without git."""
    git = shutil.which("git")
    if git is None:
        return "unknown"

    def ask(*words: str) -> str:
        answer = subprocess.run([git, "-C", str(folder), *words], capture_output=True, text=True, check=False)
        return answer.stdout.strip() if answer.returncode == 0 else ""

    changed = " with changes" if ask("status", "--porcelain", "--untracked-files=no") else ""
    return f"{ask('rev-parse', '--short', 'HEAD') or 'unknown'}{changed}"


def save(file: Path, table: Table, facts: Mapping[str, str], notes: Sequence[str]) -> None:
    """Write a table with its circumstances as .md, .csv or .json; its folder is made. ValueError for other endings."""
    if file.suffix not in FORMATS:
        raise ValueError(f"{file}: tables are saved as {', '.join(FORMATS)}")
    as_text = {".md": _markdown, ".csv": _csv, ".json": _json}[file.suffix]
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(as_text(table, facts, notes), encoding="utf-8")


def _markdown(table: Table, facts: Mapping[str, str], notes: Sequence[str]) -> str:
    lines = [f"- {key}: {value}" for key, value in facts.items()]
    lines += ["", _row(table.widths), _row("---" for _ in table.widths)]
    lines += [_row(shown(value) for value in row.values()) for row in table.rows]
    return "\n".join([*lines, "", *(f"- {note}" for note in notes)]).rstrip() + "\n"


def _row(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _csv(table: Table, facts: Mapping[str, str], notes: Sequence[str]) -> str:
    """Circumstances as lines that begin with #, then the table with all digits."""
    text = io.StringIO()
    text.writelines(f"# {line}\n" for line in [*(f"{key}: {value}" for key, value in facts.items()), *notes])
    writer = csv.DictWriter(text, list(table.widths), lineterminator="\n")
    writer.writeheader()
    writer.writerows(table.rows)
    return text.getvalue()


def _json(table: Table, facts: Mapping[str, str], notes: Sequence[str]) -> str:
    content = {"machine": dict(facts), "columns": list(table.widths), "rows": table.rows, "notes": list(notes)}
    return json.dumps(content, indent=1) + "\n"
