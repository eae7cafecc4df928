"""What may answer a command."""

from umbel.errors import MessageError
from umbel.messages import ID_MAX, INLINE_MAX, Answered, Blob, Evaluated, Exported, Outcome, Reported, Trained
from umbel.sizes import check_metrics

_OUTCOMES: dict[str, type[Outcome]] = {
    "train": Trained,
    "evaluate": Evaluated,
    "infer": Answered,
    "export": Exported,
    "report": Reported,
}


def unfit(kind: str, outcome: Outcome) -> str:
    """Why an outcome cannot answer a command of this kind; empty when it can."""
    if (expected := _OUTCOMES.get(kind)) is None:
        return f"a command of kind {kind} has no outcome, it was answered with {type(outcome).__name__}"
    if not isinstance(outcome, expected):
        return f"the answer should be {expected.__name__}, it is {type(outcome).__name__}"
    return ""


def check_outcome(outcome: Outcome) -> None:
    """Raise MessageError when an outcome holds more than its kind can need, where cutting would change what it means."""
    blob: Blob | None = None
    match outcome:
        case Trained(assignment=assignment, metrics=metrics) | Evaluated(assignment=assignment, metrics=metrics):
            check_metrics(metrics)
            if len(assignment) > ID_MAX:
                raise MessageError(f"an assignment's id has at most {ID_MAX} characters, got {len(assignment)}")
    match outcome:
        case Trained(update=blob) | Answered(outputs=blob) | Exported(model=blob):
            if blob.data is not None and len(blob.data) > INLINE_MAX:
                raise MessageError(f"at most {INLINE_MAX} bytes travel in a message, got {len(blob.data)}; upload them")
