"""Hooks of the site: pages that stand outside docs/, links that lead there, and no request to another host.

The pages are read on a code host too, where links are relative to the repository. The site holds docs/, the changelog and the
pages of results/. A link to any of these leads to its page, a picture comes along, and a link to another file of the
repository becomes plain text, because the site cannot show it. A link to nothing stays, so that the strict build fails.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.exceptions import PluginError
from mkdocs.structure.files import File

ROOT = Path(__file__).parents[2]
PAGES = ("CHANGELOG.md", "results/*/README.md")
PICTURES = (".svg", ".png")
LINK_OR_CODE = re.compile(
    r"^```.*?^```|(?P<bang>!?)\[(?P<words>[^\]]*)\]\((?P<target>[^()\s#]+)(?P<anchor>#[^()\s]*)?\)|`[^`\n]+`",
    re.MULTILINE | re.DOTALL,
)

FETCHED = re.compile(
    r"<(?:script|img|iframe|link(?=[^>]*(?:stylesheet|preconnect)))\b[^>]*?\b(?:src|href)=[\"']?(?:https?:)?//[^>]*>"
)


def on_files(files: Any, *, config: Any) -> Any:
    """Add the pages outside docs/."""
    for path in sorted(path for pattern in PAGES for path in ROOT.glob(pattern)):
        files.append(_outside(path.relative_to(ROOT).as_posix(), config))
    return files


def on_page_markdown(markdown: str, *, page: Any, config: Any, files: Any) -> str:
    """Translate the page's links from places in the repository to places in the site."""
    source = page.file.src_uri
    there = source if page.file.src_dir == str(ROOT) else f"docs/{source}"

    def translated(found: re.Match[str]) -> str:
        target = found["target"]
        if target is None or ":" in target:
            return found[0]
        place = posixpath.normpath(posixpath.join(posixpath.dirname(there), target))
        if not (ROOT / place).exists():
            return found[0]
        wanted = place.removeprefix("docs/")
        if files.get_file_from_path(wanted) is None:
            if not place.endswith(PICTURES):
                return found["words"]
            files.append(_outside(place, config))
        link = posixpath.relpath(wanted, posixpath.dirname(source) or ".")
        return f"{found['bang']}[{found['words']}]({link}{found['anchor'] or ''})"

    return LINK_OR_CODE.sub(translated, markdown)


def on_post_page(output: str, *, page: Any, config: Any) -> str:
    """Refuse a page that would make its reader's browser ask another host.

    Raises:
        PluginError: it has a script, a style, a picture or a frame from elsewhere.
    """
    found = FETCHED.search(output)
    if found:
        raise PluginError(f"{page.file.src_uri} fetches from another host, which its reader did not choose: {found[0]}")
    return output


def _outside(place: str, config: Any) -> File:
    return File(place, str(ROOT), config.site_dir, config.use_directory_urls)
