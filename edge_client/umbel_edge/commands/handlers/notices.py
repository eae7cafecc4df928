"""Handlers of notices from the server, which the device processes at once, also while it works on something else."""

from collections.abc import Callable

from umbel.messages import Cancel, Hello, Rekey, Standing
from umbel_edge.commands.handlers.context import HandlerContext


def cancel(context: HandlerContext, body: Cancel, done: Callable[[], None]) -> None:
    """Stop working on an assignment before its next batch, and do not begin it again."""
    context.state.cancellations.add(body.assignment, context.now())
    done()


def check_participation(context: HandlerContext, body: Standing, done: Callable[[], None]) -> None:
    """Ask the server over HTTP whether this device still takes part."""
    done()  # first: a device that learns that it is revoked ends
    context.participation.hear(body)


def rekey(context: HandlerContext, body: Rekey, done: Callable[[], None]) -> None:
    """Learn the server's new signing key; done once the key is proven."""
    context.keys.learn(body.key, done)


def answer_hello(context: HandlerContext, command: str, body: Hello) -> None:
    """Say that this device is there, by a status that names the command."""
    context.answer_hello(command, body)
