"""What is wrong with a data set, as a table for the person who owns it: a row for each file, with reason and remedy."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.base.files import printable, write_whole
from utils.data.image_files import Problem

NAME = "dataset_report.csv"
COLUMNS = ("split", "file", "line", "reason", "remedy", "left out")
_FORMULA = tuple("=+-@＝＋－＠")  # what makes spreadsheets calculate, or start a program


def write_report(folder: Path, splits: Mapping[str, Sequence[Problem]]) -> Path | None:
    """Write `dataset_report.csv` into a folder, whole or not at all: the problems of every split, a row each.

    The file is UTF-8 with a mark that makes spreadsheets read it so. Bytes of names that are no text are written as
    escapes; what could pass for a formula gets an apostrophe in front. Where there is no problem there is no file: an
    old one is removed, and None returned. Raises OSError when the folder cannot be written to.
    """
    target = folder / NAME
    if not any(splits.values()):
        target.unlink(missing_ok=True)
        return None
    content = io.StringIO()
    table = csv.writer(content, lineterminator="\r\n")
    table.writerow(COLUMNS)
    for split, problems in splits.items():
        for problem in problems:
            line, dropped = "" if problem.line is None else str(problem.line), "yes" if problem.dropped else "no"
            row = map(printable, (split, problem.file, line, problem.reason, problem.remedy, dropped))
            table.writerow(f"'{cell}" if cell.lstrip().startswith(_FORMULA) else cell for cell in row)
    write_whole(target, content.getvalue().encode("utf-8-sig"))
    return target
