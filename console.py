"""The scripts as one installed command.

yolov5-biformer train --data coco128.yaml --cfg yolov5s_BiFormer.yaml
yolov5-biformer detect --weights best.pt --source bus.jpg
yolov5-biformer export --help
"""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Sequence

COMMANDS = ("train", "val", "detect", "export", "serve")
NAME = "yolov5-biformer"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the script that the first word names with the words after it; return its exit status."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(NAME, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=COMMANDS, help="what to do; COMMAND --help lists its options")
    command = parser.parse_args(words[:1]).command
    sys.argv = [f"{NAME} {command}", *words[1:]]  # what --help and messages call the program
    script = importlib.import_module(command)  # only now: another command needs none of its packages
    status = script.main()
    if command == "serve":
        script.leave(status)  # a thread may still compute
    return status


if __name__ == "__main__":
    sys.exit(main())
