"""What pyproject.toml, CITATION.cff, CHANGELOG.md and the requirement files say of each other."""

from __future__ import annotations

import re
import tomllib

import yaml

from utils.base.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def listed(file: str) -> set[str]:
    """Return the packages that a requirements file names itself."""
    lines = (ROOT / file).read_text(encoding="utf-8").splitlines()
    return {line.strip() for line in lines if line.strip() and line[0] not in "#-"}


def expanded(extra: str) -> set[str]:
    """Return the packages of an extra, those of the extras that it names among them."""
    found: set[str] = set()
    for line in EXTRAS[extra]:
        inner = re.fullmatch(rf"{PROJECT['name']}\[(.+)\]", line)
        found |= set().union(*map(expanded, inner[1].split(","))) if inner else {line}
    return found


def test_dependencies_are_those_of_requirements_txt() -> None:
    assert set(PROJECT["dependencies"]) == listed("requirements.txt")


def test_the_test_extra_is_tests_requirements_txt() -> None:
    assert expanded("test") == listed("tests/requirements.txt")


def test_all_has_every_extra() -> None:
    assert {*"export serve search track loggers test all".split()} <= EXTRAS.keys()
    assert expanded("all") == set().union(*(expanded(name) for name in EXTRAS if name != "all"))


def test_there_is_one_version() -> None:
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == PROJECT["version"] and citation["license"] == PROJECT["license"]
    heads = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert heads[0] == PROJECT["version"]


def test_one_ruff_for_everybody() -> None:
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text(encoding="utf-8"))
    assert {repo.get("rev") for repo in hooks["repos"] if "ruff" in repo["repo"]} == {
        "v" + next(line.partition("==")[2] for line in EXTRAS["dev"] if line.startswith("ruff=="))
    }


def test_the_workflow_runs_every_python() -> None:
    jobs = yaml.safe_load((ROOT / ".github/workflows/tests.yml").read_text(encoding="utf-8"))["jobs"]
    versions = jobs["tests"]["strategy"]["matrix"]["python-version"]
    assert versions == ["3.11", "3.12", "3.13", "3.14"] and PROJECT["requires-python"] == f">={versions[0]}"


def test_what_is_installed_is_there() -> None:
    scripts = PROJECT["scripts"]
    assert scripts == {"yolov5-biformer": "console:main"}
    tool = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    assert all((ROOT / f"{name}.py").is_file() for name in tool["py-modules"])
    assert {path.stem for path in ROOT.glob("*.py")} == set(tool["py-modules"])
