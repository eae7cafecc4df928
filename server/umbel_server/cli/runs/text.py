"""A run in words: its state, its end, and the command that helps when it waits."""

from typing import Any

from umbel_server import answers
from umbel_server.cli.output import console, plain, size_text, state_text


def head(row: answers.Run) -> str:
    """A run's id, task, state and rounds, as markup; for a paused or failed run also the command to type next."""
    reason = f": {plain(row.reason)}" if row.reason else ""
    text = (
        f"run [bold]{row.id}[/] ({plain(row.task)}, {plain(row.strategy)}): {state_text(row.state)} after "
        f"{row.round} of {row.rounds} rounds{reason}"
    )
    return f"{text}\n{hint(row)}" if hint(row) else text


def print_head(row: answers.Run) -> None:
    """Print `head`; only a terminal wraps it."""
    console.print(head(row), highlight=False, soft_wrap=not console.is_terminal)


def hint(row: answers.Run) -> str:
    """The command that helps a paused or failed run; empty for other states."""
    match row.state:
        case "paused":
            return f"go on with it: umbel runs resume {row.id}"
        case "failed":
            return f"try again from its newest checkpoint: umbel runs clone {row.id} --from-checkpoint {row.id}"
    return ""


def ends_text(settings: dict[str, Any]) -> str:
    """The conditions that end a run before its last round; empty when it has none."""
    ends = []
    if settings.get("until"):
        ends.append(f"{settings['until']} >= {settings['at_least']:g}")
    if settings.get("budget_hours"):
        ends.append(f"{settings['budget_hours']:g} h")
    if settings.get("budget_bytes"):
        ends.append(size_text(settings["budget_bytes"]))
    return ", ".join(ends)
