"""Your own blocks, losses and optimisers: each file of this folder is imported with `models` (docs/extending.md)."""

import importlib
import pkgutil
import traceback

BROKEN: list[
    str
] = []  # a line for each file that could not be imported; no model is built or loaded until it is mended


def line_of(error: BaseException, name: str) -> str:
    """Return what is wrong with a file of this folder as one line: the file, the line in it, the error."""
    places = [
        frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename.endswith(f"{name}.py")
    ]
    line = error.lineno if isinstance(error, SyntaxError) else (places or [0])[-1]
    text = " ".join((error.msg if isinstance(error, SyntaxError) else str(error)).split())
    return (
        f"models/custom/{name}.py, line {line}: {type(error).__name__}: {text}; mend it, or take it out of the folder"
    )


for _file in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
    try:
        importlib.import_module(f"{__name__}.{_file.name}")
    except (Exception, SystemExit) as _error:
        BROKEN.append(line_of(_error, _file.name))
