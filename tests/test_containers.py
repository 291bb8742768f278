"""The container files, as far as they can be judged without an engine that builds them."""

from __future__ import annotations

import ast
import fnmatch
import json
import re
import shlex
from pathlib import Path

import pytest

from serve import NEEDED, ServeOptions
from utils.base.options import parse

ROOT = Path(__file__).resolve().parents[1]
FILES = ["Dockerfile", "Dockerfile.cuda"]


def instructions(name: str) -> list[tuple[str, str]]:
    """(instruction, arguments) in order; lines that go on are joined, comments left out."""
    lines = [line for line in (ROOT / name).read_text().splitlines() if not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
    pairs = [line.partition(" ") for line in joined.splitlines() if line.strip()]
    return [(word, rest.strip()) for word, _, rest in pairs]


def ignored(path: str) -> bool:
    """Does .dockerignore keep the file out of the image? The last rule that fits counts."""
    out = False
    for rule in (ROOT / ".dockerignore").read_text().splitlines():
        pattern = rule.lstrip("!").removeprefix("**/")
        if rule and not rule.startswith("#"):
            parents = [path, *map(str, Path(path).parents)]
            deep = rule.lstrip("!").startswith("**/")
            names = [*parents, *(Path(one).name for one in parents)] if deep else parents
            if any(fnmatch.fnmatchcase(one, pattern) for one in names if one != "."):
                out = not rule.startswith("!")
    return out


@pytest.mark.parametrize("name", FILES)
def test_what_is_copied_exists_and_is_not_ignored(name: str) -> None:
    sources = [one for word, rest in instructions(name) if word == "COPY" for one in rest.split()[:-1]]
    assert sources
    for source in sources:
        assert (ROOT / source).exists() and not ignored(source)


def test_what_is_ignored() -> None:
    for path in (
        ".git/config",
        "runs/train/exp/weights/best.pt",
        "tests/golden/x.pt",
        "data/images/a.jpg",
        "models/x.pt",
    ):
        assert ignored(path), path
    assert ignored("utils/__pycache__/log.cpython-312.pyc")
    for path in ("utils/serving/page.html", "models/yolov5_BiFormer.yaml", "data/coco128.yaml", "serve.py"):
        assert not ignored(path), path


@pytest.mark.parametrize("name", FILES)
def test_the_command_is_the_server(name: str) -> None:
    found = dict(instructions(name))
    entry, command = json.loads(found["ENTRYPOINT"]), json.loads(found["CMD"])
    assert entry[:2] == ["python", "serve.py"]
    opt = parse(ServeOptions, entry[2:] + command)
    assert (opt.host, opt.port, opt.weights) == ("0.0.0.0", 5000, ["/weights/best.pt"])
    assert found["EXPOSE"] == "5000" and "GPU" not in command
    assert opt.half == (name == "Dockerfile.cuda") and opt.device == ("cpu" if name == "Dockerfile" else "0")


@pytest.mark.parametrize("name", FILES)
def test_nobody_is_root_and_health_is_asked_for(name: str) -> None:
    pairs = instructions(name)
    words = [word for word, _ in pairs]
    (user,) = [rest for word, rest in pairs if word == "USER"]
    assert user != "root" and any(word == "RUN" and "useradd" in rest and user in rest.split() for word, rest in pairs)
    assert words.index("USER") < words.index("ENTRYPOINT")
    check = dict(pairs)["HEALTHCHECK"]
    program = json.loads(check[check.index("[") :])
    assert program[:2] == ["python", "-c"] and "127.0.0.1:5000/health" in program[2]
    ast.parse(program[2])


@pytest.mark.parametrize("name", FILES)
def test_every_package_is_installed(name: str) -> None:
    installed = " ".join(rest for word, rest in instructions(name) if word == "RUN" and "pip install" in rest)
    packages = {re.split(r"[<>=]", word)[0] for word in shlex.split(installed)}
    assert {*NEEDED.values(), "requirements.txt"} <= packages
