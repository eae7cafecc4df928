"""The pages that are made when the site is built, by their paths in the site."""

import re
from pathlib import Path

from docs.hooks import agent_reference, api_reference, cli_reference, settings_reference

COPIES = {"SECURITY.md": "security/attacks.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
"""Files at the top of the repository, and their pages."""

_LINK = re.compile(r"\]\((?!https?://|#|mailto:)([^)#\s]+)(#[^)\s]*)?\)")


def pages(root: Path) -> dict[str, str]:
    """Markdown by path; `root` is the top of the repository."""
    made = {
        "reference/umbel.md": cli_reference.page(),
        "reference/umbel-agent.md": agent_reference.command_page(),
        "reference/agent-toml.md": agent_reference.settings_page(),
        "reference/umbel-toml.md": settings_reference.server_page(),
        "reference/round-policy.md": settings_reference.policy_page(),
        "reference/strategies.md": settings_reference.strategies_page(),
        "reference/api.md": api_reference.page(),
        "findings.md": findings_page(root / "findings"),
    }
    for name, path in COPIES.items():
        made[path] = moved((root / name).read_text(), path)
    return made


def findings_page(folder: Path) -> str:
    """Each script in `findings/` with the sentences at its beginning."""
    lines = [
        "# Findings",
        "",
        "Libraries, tools and formats of this field sometimes surprise. The folder `findings/` has one script for each "
        "surprise that Umbel met. A script shows its surprise when you run it. The scripts are not part of the tests.",
        "",
    ]
    for script in sorted(folder.glob("*.sh")):
        lines += [f"## {script.stem}", "", _head(script), "", f"Run it: `bash findings/{script.name}`", ""]
    return "\n".join(lines)


def _head(script: Path) -> str:
    """The comment at the beginning of a shell script."""
    comment: list[str] = []
    for line in script.read_text().splitlines():
        if line.startswith("#!"):
            continue
        if not line.startswith("#"):
            break
        comment.append(line.removeprefix("#").strip())
    return "\n".join(comment).strip()


def moved(text: str, path: str) -> str:
    """A file of the top folder as a page at `path`: links into `docs` follow it, other links are their text alone."""
    up = "../" * path.count("/")

    def follow(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        if target in COPIES:
            return f"]({up}{COPIES[target]}{anchor})"
        if target.startswith("docs/") and target.endswith(".md"):
            return f"]({up}{target.removeprefix('docs/')}{anchor})"
        return "](#)"

    return re.sub(r"\[([^\]]+)\]\(#\)", r"`\1`", _LINK.sub(follow, text))
