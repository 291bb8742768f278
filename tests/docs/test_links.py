"""The pages of the documentation: their links lead somewhere, and each language names the other."""

from __future__ import annotations

import re

import pytest

from utils.base.paths import ROOT

PAGES = sorted([*ROOT.glob("README*.md"), *ROOT.glob("docs/*.md")])
CHINESE = ".zh-CN.md"


def prose(text: str) -> str:
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S)


def anchors(text: str) -> set[str]:
    """What can stand behind # in the address of a page, as GitHub makes it of the headings."""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def test_a_page_without_headings_and_links():
    assert anchors("") == anchors("```\n# a comment\n```") == set()


def test_anchors_of_headings():
    assert anchors("# A, b\n## 填充：一个发现\n### `x_y` 2.\n") == {"a-b", "填充一个发现", "x_y-2"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text(encoding="utf-8"))):
        if re.match(r"\w+:", target):
            continue  # another site: not asked
        path, _, anchor = target.partition("#")
        file = page.parent / path if path else page
        assert file.exists(), target
        assert not anchor or anchor in anchors(file.read_text(encoding="utf-8")), target


@pytest.mark.parametrize("page", [page for page in PAGES if page.name.endswith(CHINESE)], ids=lambda page: page.name)
def test_each_language_names_the_other(page):
    english = page.with_name(page.name.replace(CHINESE, ".md"))
    assert f"**English** | [简体中文]({page.name})\n" in english.read_text(encoding="utf-8")
    assert f"[English]({english.name}) | **简体中文**\n" in page.read_text(encoding="utf-8")
