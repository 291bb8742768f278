"""The scripts as one installed command.

yolov5-biformer train --data coco128.yaml --cfg yolov5s_BiFormer.yaml
yolov5-biformer detect --weights best.pt --source bus.jpg
yolov5-biformer export --help
"""

from __future__ import annotations

import argparse
import importlib
import importlib.metadata
import sys
import tomllib
from collections.abc import Sequence

from utils.base.options import Parser, nearest
from utils.base.paths import ROOT

COMMANDS = ("train", "val", "detect", "export", "serve")
NAME = "yolov5-biformer"


def version() -> str:
    """Return the version of the folder this lies in, else the one that is installed."""
    file = ROOT / "pyproject.toml"
    if not file.is_file():
        return importlib.metadata.version(NAME)
    return str(tomllib.loads(file.read_text(encoding="utf-8"))["project"]["version"])


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script that the first word names with the words after it; return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(NAME, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--version", action="version", version=f"{NAME} {version()}")
    parser.add_argument("command", help=f"one of {', '.join(COMMANDS)}; COMMAND --help lists its options")
    if not words:
        parser.print_help(sys.stderr)
        return 2
    command = parser.parse_args(words[:1]).command
    if command not in COMMANDS:
        parser.error(f"unknown command {command}{nearest(command, COMMANDS)}; there are {', '.join(COMMANDS)}")
    sys.argv = [f"{NAME} {command}", *words[1:]]  # what --help and messages call the program
    status: int = importlib.import_module(command).main()  # only now: another command needs none of its packages
    return status


if __name__ == "__main__":
    sys.exit(main())
