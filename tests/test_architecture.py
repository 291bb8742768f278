"""The house rules that a machine can check: layers, circles, imports that do nothing, no foreign code that runs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {"train", "val", "detect", "export", "serve", "hubconf"}
FILES = sorted([*ROOT.glob("*.py"), *(ROOT / "models").rglob("*.py"), *(ROOT / "utils").rglob("*.py")])
FORBIDDEN = {"eval", "exec", "os.system", "os.popen", "pickle.load", "pickle.loads", "yaml.load", "print"}


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not any(alias.name == "*" for alias in node.names), f"{path}: star import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


GRAPH = {module_of(path): imported(path) for path in FILES}


def test_the_tree_is_there() -> None:
    assert {*SCRIPTS, "models.yolo", "models.common", "utils.loss"} <= set(GRAPH)


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_imports_point_downwards(module: str) -> None:
    heads = {name.split(".")[0] for name in GRAPH[module]}
    assert not heads & SCRIPTS, "scripts are imported by nobody"
    assert not heads & {"tests", "benchmarks"}
    if module.startswith("utils"):
        assert "models" not in heads, "utils knows no model"
    assert module == "utils.general" or "utils.general" not in GRAPH[module], "the facade is for outsiders"


def test_no_circles() -> None:
    done: set[str] = set()

    def visit(module: str, trail: tuple[str, ...]) -> None:
        assert module not in trail, " -> ".join([*trail, module])
        if module not in done:
            for name in GRAPH[module] & set(GRAPH) - {module}:
                visit(name, (*trail, module))
            done.add(module)

    for module in GRAPH:
        visit(module, ())


@pytest.mark.parametrize("path", FILES, ids=module_of)
def test_no_foreign_code_is_run(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            words = {word.arg: ast.unparse(word.value) for word in node.keywords}
            assert name not in FORBIDDEN, f"{path}:{node.lineno}: {name}"
            assert words.get("shell") != "True", f"{path}:{node.lineno}: shell=True"
            assert not name.endswith("torch.load") or words.get("weights_only") == "True", f"{path}:{node.lineno}"


WATCH = """
import importlib, logging, os, sys, threading
import numpy, torch
{first}
def state():
    return dict(os.environ), torch.get_num_threads(), threading.active_count(), torch.get_default_dtype(), os.listdir()
before, loaded = state(), set(sys.modules)
for name in {modules!r}:
    importlib.import_module(name)
    assert state() == before, f"importing {{name}} changed something"
    assert not logging.getLogger("yolov5").handlers and not logging.getLogger().handlers, f"{{name}}: log handlers"
print(" ".join(sorted({{name.split(".")[0] for name in set(sys.modules) - loaded}})))
"""


def import_in_a_fresh_process(modules: list[str], first: str, cwd: Path, **env: str) -> set[str]:
    """Import the modules one by one, hold the process against what it was; returns the packages that came along."""
    done = subprocess.run(
        [sys.executable, "-c", WATCH.format(first=first, modules=modules)],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **env},
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_importing_does_nothing(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    # OpenCV's own import sets Qt's variables: that is taken first and not held against us
    optional = {"utils.loggers.tensorboard", "models.routed_attention_triton"}
    optional |= {f"utils.serving.{name}" for name in ("app", "hosts", "protocol", "stopping", "uploads")}  # FastAPI's
    modules = sorted(set(GRAPH) - optional)
    import_in_a_fresh_process(modules, "import cv2", tmp_path, HOME=str(home))
    assert not any(home.iterdir()), "an import wrote into the home folder"


def test_the_network_imports_light(tmp_path: Path) -> None:
    came_along = import_in_a_fresh_process(["models.yolo"], "", tmp_path)
    assert not {"cv2", "matplotlib", "pandas", "seaborn", "scipy", "torchvision", "PIL"} & came_along
