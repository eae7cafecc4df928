"""What MkDocs calls while it builds the site: it adds generated pages, and the dark form of each picture.

No generated page is in the repository, so none can be out of date.
"""

import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))

from docs.hooks import generated, pictures  # noqa: E402  (its folder is on the path only now)


def on_files(files: Files, config: Any) -> Files:
    """Add every generated page; MkDocs calls this when it has found the pages in `docs`."""
    for path, text in generated.pages(ROOT).items():
        files.append(File.generated(config, path, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Show each picture in the colours of the theme."""
    return pictures.themed(markdown)
