"""The outcome that a command expects, and the bounds of what it may hold."""

from typing import Any

from umbel.errors import MessageError
from umbel.messages import ID_MAX, INLINE_MAX, Evaluated, Outcome, Trained, blobs_of
from umbel.sizes import check_metrics
from umbel_server.commands.kinds import CommandKind


def check_outcome(kind: CommandKind[Any], outcome: Outcome) -> None:
    """Raise MessageError when an outcome cannot answer a command of this kind, or holds more than it can need.

    Only texts are cut to their bounds (umbel.messages): cutting anything else would change its meaning.
    """
    if kind.outcome is None:
        raise MessageError(
            f"a command of kind {kind.name} has no outcome, it was answered with {type(outcome).__name__}"
        )
    if not isinstance(outcome, kind.outcome):
        raise MessageError(f"the answer should be {kind.outcome.__name__}, it is {type(outcome).__name__}")
    if isinstance(outcome, Trained | Evaluated):
        check_metrics(outcome.metrics)
        if len(outcome.assignment) > ID_MAX:
            raise MessageError(f"an assignment's id has at most {ID_MAX} characters, got {len(outcome.assignment)}")
    for blob in blobs_of(outcome):
        if blob.data is not None and len(blob.data) > INLINE_MAX:
            raise MessageError(f"at most {INLINE_MAX} bytes travel in a message, got {len(blob.data)}; upload them")
