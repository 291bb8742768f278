"""Where modules lay before `utils` and `models` had rooms: programs that import them from there go on working.

A former path leads to the module of today itself, so no class exists twice. Nothing in the tree uses one.
"""

from __future__ import annotations

import importlib
import sys
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

FORMER = {
    "models.attention": "models.bra.attention",
    "models.autoshape": "models.api.autoshape",
    "models.routed_attention": "models.bra.functions",
    "models.routed_attention_triton": "models.bra.triton_kernels",
    "models.routing_maps": "models.bra.routing_maps",
    "utils.annotator": "utils.drawing.annotator",
    "utils.batches": "utils.data.samplers",
    "utils.checkpoint": "utils.checkpoints.checkpoint",
    "utils.config": "utils.base.config",
    "utils.converters": "utils.prepare.converters",
    "utils.dataset_tools": "utils.prepare.dataset_tools",
    "utils.evaluator": "utils.evaluation.evaluator",
    "utils.label_index": "utils.data.label_index",
    "utils.log": "utils.base.log",
    "utils.nms": "utils.boxes.nms",
    "utils.optim": "utils.training.optim",
    "utils.paths": "utils.base.paths",
    "utils.pictures": "utils.images.reading",
    "utils.reports": "utils.evaluation.reports",
    "utils.sources": "utils.predict.sources",
    "utils.tracking": "utils.predict.tracking",
    "utils.trainer": "utils.training.trainer",
    "utils.transfer": "utils.training.transfer",
    "utils.writers": "utils.drawing.writers",
}


class FormerPaths(MetaPathFinder, Loader):
    """Finds the modules of the former paths: in `sys.meta_path` the import system asks it last."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Return what is needed to import a former path, None for any other."""
        return ModuleSpec(fullname, self) if fullname in FORMER else None

    def exec_module(self, module: ModuleType) -> None:
        """Put the module of today in the place of the former one."""
        sys.modules[module.__name__] = importlib.import_module(FORMER[module.__name__])
