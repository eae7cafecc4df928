"""The translation of a Flower message into the body of a command."""

from collections.abc import Mapping

from flwr.app import ConfigRecord, Message, MessageType

from umbel.conditions import Rules
from umbel.errors import UmbelError
from umbel.messages import Blob, Evaluate, Train


def instruction(
    message: Message,
    assignment: str,
    run: str,
    plan: Blob,
    weights: Blob,
    deadline: float,
    learning_rate: float,
    requires: Rules,
) -> Train | Evaluate:
    """The command body of a `train` or `evaluate` message; `deadline` is Unix seconds, `learning_rate` the plan's.

    The device must keep what the run `requires`, beside its own rules.
    """
    config = next(iter(message.content.config_records.values()), ConfigRecord())
    number = int(_number(config, "server-round", 0))
    if message.metadata.message_type == MessageType.EVALUATE:
        return Evaluate(assignment, run, number, plan, weights, deadline, requires)
    return Train(
        assignment,
        run,
        number,
        plan,
        weights,
        deadline,
        learning_rate=_number(config, "learning-rate", learning_rate),
        epochs=int(_number(config, "epochs", 1)),
        max_steps=int(_number(config, "max-steps", 0)),
        proximal_mu=_number(config, "proximal-mu", 0.0),
        seed=int(_number(config, "seed", 0)),
        requires=requires,
    )


def _number(config: Mapping[str, object], name: str, default: float) -> float:
    value = config.get(name, default)
    if not isinstance(value, int | float):
        raise UmbelError(f"{name} should be a number, got {value!r}")
    return float(value)
