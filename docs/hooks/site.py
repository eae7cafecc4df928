"""Adds pages to the site when MkDocs builds it: the reference, and copies of files that lie at the top of the repository.

None of them is in the repository, so none can be out of date.
"""

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from docs.hooks import generated  # noqa: E402  (its folder is on the path only now)


def on_files(files: Files, config: Any) -> Files:
    """Add every generated page; MkDocs calls this when it has found the pages in `docs`."""
    for path, text in generated.pages(ROOT).items():
        files.append(File.generated(config, path, content=text))
    return files
