"""The house rules that a machine can check: layers, circles, imports that do nothing, no foreign code that runs."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from docs.figures import rooms
from utils.former_paths import FORMER

ROOT = Path(__file__).resolve().parents[1]
SCRIPTS = {"train", "val", "detect", "export", "serve", "hubconf", "console"}
CUSTOM = ROOT / "models/custom"  # what people put there, and scripts of their own beside ours, may be as they like
FILES = sorted(
    [
        *(ROOT / f"{name}.py" for name in SCRIPTS),
        *(path for room in ("models", "utils") for path in (ROOT / room).rglob("*.py") if path.parent != CUSTOM),
    ]
)
FORBIDDEN = {
    "eval", "exec", "builtins.eval", "builtins.exec", "os.system", "os.popen", "pickle.load", "pickle.loads",
    "yaml.load", "print",
}  # fmt: skip


COMPUTED = "(a module whose name is computed)"
MAY_COMPUTE = {"utils.former_paths", "utils.evaluation.coco_truth"}  # our own former paths; other people's packages


def module_of(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imported(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not any(alias.name == "*" for alias in node.names), f"{path}: star import"
            assert node.level == 0, f"{path}: a relative import"
            names.add(node.module or "")
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            names.add(node.args[0].value if isinstance(node.args[0], ast.Constant) else COMPUTED)
    return names


GRAPH = {module_of(path): imported(path) for path in FILES}


def test_the_tree_is_there() -> None:
    assert {*SCRIPTS, "models.yolo", "models.common", "utils.training.loss"} <= set(GRAPH)


def room_of(module: str) -> str:
    """`utils.data` for `utils.data.labels`; a file of models/ itself is of the room `models`, a door of `utils`."""
    parts = module.split(".")
    return ".".join(parts[:2]) if (ROOT / parts[0] / (parts[1] if len(parts) > 1 else "")).is_dir() else parts[0]


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_imports_point_downwards(module: str) -> None:
    heads = {name.split(".")[0] for name in GRAPH[module]}
    assert not heads & SCRIPTS, "scripts are imported by nobody"
    assert not heads & {"tests", "benchmarks"}
    if module.startswith("utils"):
        assert "models" not in heads, "utils knows no model"
        assert COMPUTED not in heads or module in MAY_COMPUTE, "write out which module is imported"


def test_imports_by_text_are_seen(tmp_path: Path) -> None:
    lines = "importlib.import_module('models.yolo')", "__import__('utils')", "import_module(f'{x}')"
    (tmp_path / "a.py").write_text("\n".join(lines))
    assert imported(tmp_path / "a.py") == {"models.yolo", "utils", COMPUTED}


@pytest.mark.parametrize("module", sorted(name for name in GRAPH if name.startswith("utils.")))
def test_rooms_are_in_import_order(module: str) -> None:
    order = [f"utils.{room}" for room in rooms.UTILS]
    if room_of(module) in order:
        above = order[: order.index(room_of(module)) + 1]
        others = {room_of(name) for name in GRAPH[module] if name in GRAPH and name != "utils"}
        assert others <= {*above}, f"{module} imports from a room below its own"


@pytest.mark.parametrize("module", sorted(GRAPH))
def test_doors_are_for_outsiders(module: str) -> None:
    outside = {f"utils.{name}" for name in (*rooms.DOORS, "v61")} | set(FORMER)
    if module not in outside:
        assert not GRAPH[module] & outside, "a door of v6.1's, or a former path"


@pytest.mark.parametrize("door", rooms.DOORS)
def test_doors_only_hand_on(door: str) -> None:
    tree = ast.parse((ROOT / "utils" / f"{door}.py").read_text(encoding="utf-8"))
    text, *imports, names = tree.body
    assert isinstance(text, ast.Expr) and all(isinstance(node, (ast.Import, ast.ImportFrom)) for node in imports)
    assert isinstance(names, ast.Assign) and isinstance(names.value, ast.List)
    assert all(isinstance(name, ast.Constant) for name in names.value.elts)
    module = importlib.import_module(f"utils.{door}")
    assert module.__all__ and all(hasattr(module, name) for name in module.__all__)


@pytest.mark.parametrize("former", sorted(FORMER))
def test_former_paths_lead_to_the_same_module(former: str) -> None:
    if FORMER[former] != "models.bra.triton_kernels" or importlib.util.find_spec("triton"):
        assert importlib.import_module(former) is importlib.import_module(FORMER[former])


def test_former_paths_are_looked_up_once_however_often_utils_is_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "meta_path", [*sys.meta_path])
    monkeypatch.delitem(sys.modules, "utils.former_paths")
    importlib.reload(importlib.reload(sys.modules["utils"]))
    assert [type(finder).__name__ for finder in sys.meta_path].count("FormerPaths") == 1


def test_a_room_has_at_most_fourteen_files() -> None:
    inside = [path for path in FILES if path.parent != ROOT and path.name != "__init__.py" and not is_door(path)]
    crowd = Counter(path.parent for path in inside)
    assert not {room: count for room, count in crowd.items() if count > 14}


def test_no_file_name_and_no_public_class_twice() -> None:
    families = {"backends", "exporters"}  # one file for each family of formats in both
    inside = [path for path in FILES if path.name != "__init__.py" and not is_door(path)]
    stems = Counter(path.stem for path in inside if path.parent.name not in families)
    assert not {name for name, count in stems.items() if count > 1}
    classes = Counter(
        node.name
        for path in inside
        for node in ast.parse(path.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_")
    )
    assert not {name for name, count in classes.items() if count > 1}


def is_door(path: Path) -> bool:
    return path.parent == ROOT / "utils" and path.stem in rooms.DOORS


def test_the_plan_is_drawn_from_the_code() -> None:
    drawn = rooms.PAGE.read_text(encoding="utf-8")
    assert rooms.plan() in drawn, "docs/architecture.md is behind: python -m docs.figures.rooms"


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
    optional = {"utils.loggers.tensorboard", "models.bra.triton_kernels"}
    optional |= {"utils.search.proposals", "utils.search.worker"}  # Optuna's
    # FastAPI's
    optional |= {f"utils.serving.{name}" for name in ("app", "batching", "detector", "protocol", "uploads")}
    modules = sorted(set(GRAPH) - optional)
    import_in_a_fresh_process(modules, "import cv2", tmp_path, HOME=str(home))
    assert not any(home.iterdir()), "an import wrote into the home folder"


def test_the_network_imports_light(tmp_path: Path) -> None:
    came_along = import_in_a_fresh_process(["models.yolo"], "", tmp_path)
    assert not {"cv2", "matplotlib", "pandas", "seaborn", "scipy", "torchvision", "PIL"} & came_along


def test_looking_and_scoring_import_light(tmp_path: Path) -> None:
    came_along = import_in_a_fresh_process(["detect", "val", "hubconf"], "import cv2", tmp_path)
    assert not {"matplotlib", "pandas", "seaborn", "scipy", "torchvision", "trackers", "supervision"} & came_along


def test_detecting_does_without_compilers(tmp_path: Path) -> None:
    script = """
import sys, torch
from models.yolo import Model
from utils.boxes.nms import non_max_suppression
model = Model("yolov5n_BiFormer.yaml", verbose=False).fuse().eval()
with torch.inference_mode():
    non_max_suppression(model(torch.zeros(1, 3, 64, 64))[0])
    non_max_suppression(torch.ones(1, 2, 6))
print(*sys.modules)"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True)
    assert not {"torch._dynamo", "sympy", "torchvision", "pandas"} & set(done.stdout.split())
