"""The reference has a page for every public name, and names nothing that is not there."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import deeplense

PAGES = sorted((Path(__file__).parents[1] / "docs" / "reference").glob("*.md"))
TARGETS = [name for page in PAGES for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)]


def test_every_public_name_has_its_place() -> None:
    places = {f"{deeplense._WHERE[name]}.{name}" for name in deeplense.__all__ if name != "__version__"}
    missing = [p for p in sorted(places) if p not in TARGETS and p.rpartition(".")[0] not in TARGETS]
    assert not missing, f"add to docs/reference: {missing}"


@pytest.mark.parametrize("target", TARGETS)
def test_what_a_page_names_is_there_and_says_what_it_is(target: str) -> None:
    try:
        found = importlib.import_module(target)
    except ModuleNotFoundError:
        where, _, name = target.rpartition(".")
        found = getattr(importlib.import_module(where), name)
    assert found.__doc__


def test_the_site_lists_every_page() -> None:
    site = (Path(__file__).parents[1] / "mkdocs.yml").read_text()
    assert PAGES
    for page in PAGES:
        assert f"reference/{page.name}" in site
