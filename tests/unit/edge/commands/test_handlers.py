"""The table of command kinds that the agent knows."""

from typing import get_args

from umbel.messages import Body, Cancel, Evaluate, Hello, Rekey, Standing, Train
from umbel_edge.commands.handlers.table import HANDLERS, Immediate, Queued, Unrecorded


def test_every_kind_of_command_has_a_handler() -> None:
    assert set(HANDLERS) == set(get_args(Body))
    assert all(handler.body is body for body, handler in HANDLERS.items())


def test_what_the_rows_say_of_each_kind() -> None:
    """Only work on an assignment waits for the device's conditions and survives a restart; only news is taken in at once."""
    queued = {body: row for body, row in HANDLERS.items() if isinstance(row, Queued)}
    assert {body for body, row in queued.items() if row.admit is not None} == {Train, Evaluate}
    assert {body for body, row in queued.items() if row.resumed} == {Train, Evaluate}
    assert {body for body, row in queued.items() if row.is_round} == {Train}
    assert {body for body, row in HANDLERS.items() if isinstance(row, Immediate)} == {Cancel, Standing, Rekey}
    assert {body for body, row in HANDLERS.items() if isinstance(row, Unrecorded)} == {Hello}
