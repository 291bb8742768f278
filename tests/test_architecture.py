"""The house rules that a machine can check: layers, circles, imports that do nothing, no foreign code that runs."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {"train", "val", "detect", "hubconf"}
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
    assert {"train", "val", "detect", "hubconf", "models.yolo", "models.common", "utils.loss"} <= set(GRAPH)


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


IMPORT = """
import os, sys, threading, torch
import {heavy}
before = set(sys.modules), dict(os.environ), torch.get_num_threads(), threading.active_count()
import {module}
assert dict(os.environ) == before[1], "environment changed"
assert (torch.get_num_threads(), threading.active_count()) == before[2:], "threads changed"
import logging
assert not logging.getLogger("yolov5").handlers and not logging.getLogger().handlers, "log handlers"
new = set(sys.modules) - before[0]
print(" ".join(sorted({{name.split(".")[0] for name in new}})))
"""


def fresh(code: str, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **env},
    )


@pytest.mark.parametrize("module", sorted(m for m in GRAPH if m != "utils.loggers.tensorboard"))
def test_import_does_nothing(module: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir(mode=0o500)
    done = fresh(IMPORT.format(module=module, heavy="numpy, cv2"), tmp_path, HOME=str(home))
    assert done.returncode == 0, done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["home"] and not any(home.iterdir()), "an import wrote files"


def test_the_network_imports_light(tmp_path: Path) -> None:
    done = fresh(IMPORT.format(module="models.yolo", heavy="torch"), tmp_path)
    assert done.returncode == 0, done.stderr
    assert not {"cv2", "matplotlib", "pandas", "seaborn", "scipy", "torchvision", "PIL"} & set(done.stdout.split())
