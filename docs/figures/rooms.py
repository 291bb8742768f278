"""The tables of docs/architecture.md: rooms in import order, and the first line of what each file says of itself.

python -m docs.figures.rooms        write them anew, after files were added, removed or renamed
"""

from __future__ import annotations

import ast
from pathlib import Path

from utils.base.paths import ROOT

PAGE = ROOT / "docs/architecture.md"
BEGIN, END = "<!-- rooms: python -m docs.figures.rooms -->", "<!-- end of rooms -->"
# A file imports from its own room and from rooms above it here, from the layer below, and from nothing else.
UTILS = (
    "base", "boxes", "distributed", "checkpoints", "images", "drawing", "data", "prepare", "predict", "evaluation",
    "routes", "loggers", "training", "search", "serving",
)  # fmt: skip
MODELS = ("bra", "description", "backends", "exporters", "api")  # around the files of models/ itself
DOORS = (
    "augmentations", "autoanchor", "autobatch", "callbacks", "datasets", "downloads", "general", "loss", "metrics",
    "plots", "torch_utils",
)  # fmt: skip


def duty(path: Path) -> str:
    """Return the first sentence of a module's docstring; raise ValueError where it has none."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
    if not text:
        raise ValueError(f"{path.relative_to(ROOT)}: no docstring, so the plan cannot say what it is for")
    return " ".join(text.split("\n\n")[0].split()).rstrip(".")


def table(folder: str) -> str:
    """Return a room as Markdown: its duty as the heading, then a row for each file but `__init__.py`."""
    place = ROOT / folder
    rows = [f"| `{file.name}` | {duty(file)} |" for file in sorted(place.glob("*.py")) if file.name != "__init__.py"]
    return "\n".join([f"**`{folder}/`**: {duty(place / '__init__.py')}", "", "| file | duty |", "|---|---|", *rows])


def plan() -> str:
    """Return the section of the page that this file writes."""
    doors = ", ".join(f"`{name}`" for name in DOORS)
    parts = [table(f"utils/{room}") for room in UTILS]
    parts.append(
        f"**Doors**, v6.1's import paths for outsiders, which no file of the tree imports: {doors} in `utils/`."
    )
    parts += [table("models"), *(table(f"models/{room}") for room in MODELS)]
    return "\n\n".join([BEGIN, *parts, END])


def main() -> None:
    """Write the tables into the page, between the two marks."""
    before, rest = PAGE.read_text(encoding="utf-8").split(BEGIN)
    PAGE.write_text(before + plan() + rest.split(END)[1], encoding="utf-8")


if __name__ == "__main__":
    main()
