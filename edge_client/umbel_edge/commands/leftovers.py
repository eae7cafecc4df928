"""Files that earlier processes of the agent left behind."""

from umbel.atomic import remove_interrupted
from umbel_edge.commands.handlers.context import HandlerContext
from umbel_edge.device.state import KEPT_SECONDS


def clean_leftovers(context: HandlerContext, resumed: set[str]) -> None:
    """Remove the files of earlier processes, except those of the commands (ids) that are resumed."""
    folder = context.state.folder
    remove_interrupted(folder)
    context.pending_updates.drop_others(resumed)
    if not resumed:
        context.progress_path.unlink(missing_ok=True)
    oldest = context.now() - KEPT_SECONDS
    for part in (*folder.glob("downloads/*.part"), *folder.glob("plans/*.part")):
        if part.stat().st_mtime < oldest:
            part.unlink()
