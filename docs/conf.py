"""The docs site: `make docs` builds build/site from the Markdown of the repository, without a network."""

from __future__ import annotations

import importlib.metadata
from typing import Final

project = "Redemption engine"
author = "the authors of the redemption engine"
copyright = author
release = importlib.metadata.version("redemption-engine")

# The sources are the repository itself, so that a link works on the site as it works in the repository.
include_patterns: Final = ["*.md", "docs/**.md"]
exclude_patterns: Final = [".*", "build"]
root_doc = "docs/index"
extensions: Final = ["myst_parser"]
myst_heading_anchors = 3
# Examples leave parts out with an ellipsis, so not each of them is JSON.
suppress_warnings: Final = ["misc.highlighting_failure"]
highlight_language = "none"

html_theme = "furo"
html_title = project
html_extra_path: Final = ["_root"]  # index.html, which leads to docs/index.html
html_copy_source = False
html_show_sphinx = False
