"""Files that processes before this one left behind."""

from umbel.atomic import remove_interrupted
from umbel_edge.commands.handlers.context import HandlerContext
from umbel_edge.device.state import KEPT_SECONDS


def clean_leftovers(context: HandlerContext, resumed: set[str]) -> None:
    """Remove what earlier processes left behind, but for the commands (ids) that go on."""
    folder = context.state.folder
    remove_interrupted(folder)
    context.pending_updates.drop_others(resumed)
    if not resumed:
        context.progress_path.unlink(missing_ok=True)
    oldest = context.now() - KEPT_SECONDS
    for part in (*folder.glob("downloads/*.part"), *folder.glob("plans/*.part")):
        if part.stat().st_mtime < oldest:
            part.unlink()
