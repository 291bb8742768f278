"""Your own blocks, losses and optimisers: each file of this folder is imported with `models` (docs/extending.md)."""

import importlib
import pkgutil

for _file in sorted(pkgutil.iter_modules(__path__), key=lambda module: module.name):
    importlib.import_module(f"{__name__}.{_file.name}")
