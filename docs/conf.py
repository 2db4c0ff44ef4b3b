"""The documentation site: `nox -s docs` builds it."""

from __future__ import annotations

import re
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

project = "trio-statskeeper"
author = "The trio-statskeeper authors"
copyright = author  # noqa: A001  # Sphinx's name for it
version = release = version_of("trio-statskeeper")

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
myst_heading_anchors = 3
# Docstrings mark code as Markdown does.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"

html_theme = "furo"
html_title = "trio-statskeeper"
html_show_copyright = False
html_copy_source = False
html_theme_options = {
    "source_repository": "https://github.com/trio-statskeeper/trio-statskeeper/",
    "source_branch": "main",
    "source_directory": "docs/",
}


def mark_code_blocks(  # noqa: PLR0913, PLR0917  # those that Sphinx gives
    app: Sphinx, what: str, name: str, obj: object, options: object, lines: list[str]
) -> None:
    """Have indented blocks shown as code, as in Markdown."""
    text = re.sub(r"(?m)^(\S.*)\n\n(?=    )", r"\1\n\n::\n\n", "\n".join(lines))
    lines[:] = text.splitlines()


def show_defaults(  # noqa: PLR0913, PLR0917  # those that Sphinx gives
    app: Sphinx,
    what: str,
    name: str,
    obj: object,
    options: object,
    signature: str | None,
    returns: str | None,
) -> tuple[str | None, str | None]:
    """Show defaults as they are written, and those that depend on `self` as `...`."""
    if signature:
        signature = signature.replace("<built-in function time>", "time.time")
        signature = signature.replace("NOTHING", "...")
    return signature, returns


def setup(app: Sphinx) -> None:
    # Napoleon has the priority 500.
    app.connect("autodoc-process-docstring", mark_code_blocks, priority=400)
    app.connect("autodoc-process-signature", show_defaults)
