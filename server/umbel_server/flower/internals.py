"""Everything of Umbel that goes below Flower's public API; the contracts in pyproject.toml and a test hold it to this file.

Public are `flwr.app`, `flwr.serverapp`, `flwr.clientapp` and `flwr.simulation`. A `Grid` of our own needs three things beside:
the type of a Flower run, an identity of this process, and ids for the messages that it sends.
"""

import secrets

from flwr.app import Message
from flwr.supercore.run import Run as FlowerRun
from flwr.supercore.task_identity import TaskIdentity

__all__ = ["SERVER_NODE", "FlowerRun", "empty_run", "give_id", "set_identity"]

SERVER_NODE = 1
"""The node id of a ServerApp."""


def set_identity() -> None:
    """Tell flwr which task this process is, unless Flower itself started it. Without an identity no Message can be made."""
    if TaskIdentity._run_id is None:
        TaskIdentity.task_id, TaskIdentity.run_id, TaskIdentity.node_id = 0, 0, SERVER_NODE


def give_id(message: Message) -> str:
    """Give an instruction a fresh id, which its reply will name; returns the id."""
    id = secrets.token_hex(16)
    message.metadata.__dict__["_message_id"] = id
    return id


def empty_run(run_id: int) -> FlowerRun:
    """A Flower run that has an id and nothing else."""
    return FlowerRun.create_empty(run_id)
