"""Every kind of command that the agent knows, and its handler.

To add a kind: a struct in `umbel.messages.Body`, a function in this folder, and a row in HANDLERS. The server has a
table of its own in `umbel_server.commands.kinds`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from umbel.conditions import Violation
from umbel.messages import (
    Cancel,
    Evaluate,
    Export,
    Hello,
    Infer,
    Install,
    Outcome,
    Rekey,
    Report,
    Standing,
    Train,
)
from umbel_edge.commands.handlers.context import HandlerContext
from umbel_edge.commands.handlers.models import export, infer, install
from umbel_edge.commands.handlers.notices import answer_hello, cancel, check_participation, rekey
from umbel_edge.commands.handlers.report import report
from umbel_edge.commands.handlers.train import clean_after_training, evaluate, may_evaluate, may_train, train

B = TypeVar("B")


@dataclass(frozen=True)
class Immediate(Generic[B]):
    """A kind that is taken in at once, in the thread that receives commands: it must not block.

    `handle(context, body, done)` calls `done` once, in any thread, when the command may be answered "done".
    """

    body: type[B]
    handle: Callable[[HandlerContext, B, Callable[[], None]], None]


@dataclass(frozen=True)
class Queued(Generic[B]):
    """A kind that waits until the commands before it are finished.

    `handle(context, command id, body)` returns the outcome, or None for a kind that has none and is answered "done". It
    raises UmbelError with the reason why it failed. `admit` returns the rules that do not hold now: the command is
    answered "declined" when there are any, else "accepted" before it is handled. A kind that is `resumed` continues after a
    restart; the server sends the others again. `is_round` counts the finished command among the device's rounds. `clean`
    is called with the command's id once the command is finished, also when it failed.
    """

    body: type[B]
    handle: Callable[[HandlerContext, str, B], Outcome | None]
    admit: Callable[[HandlerContext, str, B], tuple[Violation, ...]] | None = None
    resumed: bool = False
    is_round: bool = False
    clean: Callable[[HandlerContext, str], None] = lambda context, command: None


@dataclass(frozen=True)
class Unrecorded(Generic[B]):
    """A kind that is in no inbox and needs no acknowledgement: handling it twice does no harm.

    `handle(context, command id, body)` is called in the thread that receives commands: it must not block.
    """

    body: type[B]
    handle: Callable[[HandlerContext, str, B], None]


Handler = Immediate[Any] | Queued[Any] | Unrecorded[Any]
Handlers = Mapping[type[Any], Handler]
"""Handlers by the type of a command's body."""

_ROWS = (
    Queued(Train, train, admit=may_train, resumed=True, is_round=True, clean=clean_after_training),
    Queued(Evaluate, evaluate, admit=may_evaluate, resumed=True),
    Queued(Install, install),
    Queued(Infer, infer),
    Queued(Export, export),
    Queued(Report, report),
    Immediate(Cancel, cancel),
    Immediate(Standing, check_participation),
    Immediate(Rekey, rekey),
    Unrecorded(Hello, answer_hello),
)
HANDLERS: Handlers = {row.body: row for row in _ROWS}
