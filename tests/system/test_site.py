"""Test the hooks of the documentation's site; `make site` builds it and checks its links."""

from __future__ import annotations

import runpy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
HOOKS: dict[str, Callable[..., Any]] = runpy.run_path(str(ROOT / "docs/site/links.py"))
PAGES = ("results.md", "code.md", "dev/log.md")


def page_of(source: str) -> Any:
    folder = ROOT / "docs" if (ROOT / "docs" / source).exists() else ROOT
    return SimpleNamespace(file=SimpleNamespace(src_uri=source, src_dir=str(folder)))


def translated(text: str, source: str) -> tuple[str, Files]:
    config = SimpleNamespace(site_dir=str(ROOT / "build/site"), use_directory_urls=False)
    files = Files([File(name, str(ROOT / "docs"), config.site_dir, False) for name in PAGES])
    files = HOOKS["on_files"](files, config=config)
    return HOOKS["on_page_markdown"](text, page=page_of(source), config=config, files=files), files


@pytest.mark.skipif(not (ROOT / "results").exists(), reason="this copy has no results/")
@pytest.mark.parametrize(
    ("source", "text", "expected"),
    [
        ("results.md", "[a](../results/paper/README.md#x)", "[a](results/paper/README.md#x)"),
        ("dev/log.md", "[a](../../results/paper/README.md)", "[a](../results/paper/README.md)"),
        ("dev/log.md", "[a](../code.md#b)", "[a](../code.md#b)"),
        ("results/paper/README.md", "[a](../../docs/dev/log.md)", "[a](../../dev/log.md)"),
        ("CHANGELOG.md", "[a](docs/code.md)", "[a](code.md)"),
        ("code.md", "[`f`](../src/selfcorrect/types.py), [h](https://a.b/c.md)", "`f`, [h](https://a.b/c.md)"),
        ("code.md", "[lost](../src/lost.py) [lost](lost.md)", "[lost](../src/lost.py) [lost](lost.md)"),
        ("code.md", "`[a](../README.md)`\n```\n[a](../README.md)\n```", "`[a](../README.md)`\n```\n[a](../README.md)\n```"),
        ("code.md", "![a](../results/paper/attempts.svg)", "![a](results/paper/attempts.svg)"),
    ],
)  # fmt: skip
def test_links_lead_to_pages_and_links_to_other_files_become_text(source: str, text: str, expected: str) -> None:
    found, files = translated(text, source)
    assert found == expected
    if "svg" in text:
        assert files.get_file_from_path("results/paper/attempts.svg") is not None


@pytest.mark.parametrize(
    "element",
    [
        '<script src="https://a.b/c.js"></script>',
        '<script async src=//a.b/c.js></script>',
        '<img alt="x" src="http://a.b/c.svg">',
        '<link href="https://a.b/c.css" rel="stylesheet">',
        '<link rel=preconnect href=https://a.b>',
    ],
)  # fmt: skip
def test_a_page_that_fetches_from_another_host_is_refused(element: str) -> None:
    with pytest.raises(PluginError, match=r"x\.md fetches from another host"):
        HOOKS["on_post_page"](f"<p>{element}</p>", page=page_of("x.md"), config=None)


def test_a_page_may_link_to_another_host_and_fetch_from_its_own() -> None:
    output = (
        '<a href="https://a.b">a</a><script src="a.js"></script><link rel="next" href="b.html"><img src="../c.svg">'
    )
    assert HOOKS["on_post_page"](output, page=page_of("x.md"), config=None) == output
