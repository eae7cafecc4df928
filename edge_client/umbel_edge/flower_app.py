"""Umbel's training as a plain Flower ClientApp, for devices that already run a Flower SuperNode."""

import math
from functools import lru_cache
from pathlib import Path

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict, UserConfig
from flwr.clientapp import ClientApp

from umbel.errors import UmbelError
from umbel.examples import Examples, load_examples
from umbel.messages import Blob, Train
from umbel.metrics import Sums
from umbel.plan import Plan
from umbel.tensors import Tensors
from umbel.updates import Pipeline, Training
from umbel_edge.training.litert_trainer import LiteRTTrainer

app = ClientApp()

ID, COUNT = "partition-id", "num-partitions"
PARTITION = {ID, COUNT}
"""The whole configuration that Flower gives a simulated node."""
PLACE = "{partition}"


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train the node's plan on the node's examples; the reply holds `arrays` (all weights) and `metrics`.

    The node's configuration: `plan` (path of a bundle), `examples` (path of an `.npz`), and optionally `device` (a name
    that tells nodes apart: it enters the order of the examples) and `threads`. A node of a Flower simulation has none of
    them, but a `partition-id`: its plan and examples are the run's, whose `examples` has `{partition}` where the number
    belongs; its name is device-<number>, with as many digits as the last one. The message's: `server-round`,
    `learning-rate` (default: the plan's), `epochs`, `max-steps`, `seed`, `proximal-mu`. The metrics are `num-examples`,
    `loss` and the plan's own, means over the examples trained on. Raises UmbelError, which Flower sends as an error.
    """
    plan, examples, trainer = _prepare(context)
    config = next(iter(message.content.config_records.values()), ConfigRecord())
    weights = _weights(message)
    how = Train(
        assignment=message.metadata.message_id,
        run=f"{message.metadata.run_id:x}",
        round=int(_number(config, "server-round", 0)),
        plan=Blob(plan.sha256, plan.path.stat().st_size),
        weights=Blob("", 0),
        deadline=math.inf,
        learning_rate=_number(config, "learning-rate", plan.manifest.learning_rate),
        epochs=int(_number(config, "epochs", 1)),
        max_steps=int(_number(config, "max-steps", 0)),
        proximal_mu=_number(config, "proximal-mu", 0.0),
        seed=int(_number(config, "seed", 0)),
    )
    outcome = trainer.train(plan, weights, examples, how, _never)
    training = Training(weights, examples.count, f"{how.seed}/{trainer.device}")
    after = Pipeline(plan.manifest.weights).whole_weights(outcome.weights, training)
    # Some of Flower's strategies pair arrays by position: they go back in the order in which they came.
    arrays = ArrayRecord({name: Array(after[name]) for name in weights})
    return Message(RecordDict({"arrays": arrays, "metrics": _metrics(examples, outcome.metrics)}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate the weights on the node's examples; the reply holds `metrics`, as after training."""
    plan, examples, trainer = _prepare(context)
    metrics = trainer.evaluate(plan, _weights(message), examples, _never)
    return Message(RecordDict({"metrics": _metrics(examples, metrics)}), reply_to=message)


def _prepare(context: Context) -> tuple[Plan, Examples, LiteRTTrainer]:
    node = context.node_config
    if node.keys() == PARTITION:
        node = _simulated(int(node[ID]), int(node[COUNT]), context.run_config)
    plan, examples = (_path(node, name) for name in ("plan", "examples"))
    opened, trainer = _trainer(plan, plan.stat().st_mtime_ns, int(_number(node, "threads", 1)))
    trainer.device = str(node.get("device", "node"))
    return opened, _examples(examples, examples.stat().st_mtime_ns, opened), trainer


def _simulated(number: int, count: int, run: UserConfig) -> UserConfig:
    """The configuration of a node that Flower simulates; its files are those that the run names."""
    pattern = str(run.get("examples", ""))
    if PLACE not in pattern:
        raise UmbelError(
            f"""simulated nodes need --run-config 'examples="FOLDER/{PLACE}.npz"', a file for each of {count} partitions; """
            f"got {pattern!r}"
        )
    device = f"device-{number:0{len(str(count - 1))}}"
    return {"plan": run.get("plan", ""), "examples": pattern.replace(PLACE, str(number)), "device": device}


@lru_cache(maxsize=1)
def _trainer(plan: Path, changed: int, threads: int) -> tuple[Plan, LiteRTTrainer]:
    """The plan and its trainer, kept between messages until the file changes."""
    return Plan.open(plan), LiteRTTrainer("", threads)


@lru_cache(maxsize=1)
def _examples(path: Path, changed: int, plan: Plan) -> Examples:
    return load_examples(path, plan.manifest)


def _path(node: UserConfig, name: str) -> Path:
    value = node.get(name)
    if not isinstance(value, str):
        raise UmbelError(f"""the node's {name} is missing: start it with --node-config 'plan="PLAN" examples="NPZ"'""")
    path = Path(value)
    if not path.is_file():
        raise UmbelError(f"the node's {name} should be a file, {path} is none; correct its --node-config")
    return path


def _weights(message: Message) -> Tensors:
    record = next(iter(message.content.array_records.values()))
    return {name: array.numpy() for name, array in record.items()}


def _metrics(examples: Examples, metrics: Sums) -> MetricRecord:
    return MetricRecord({"num-examples": examples.count, **metrics})


def _number(config: ConfigRecord | dict[str, bool | float | int | str], name: str, default: float) -> float:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise UmbelError(f"{name} should be a number, got {value!r}")
    return float(value)


def _never() -> None:
    """Never stop the work: Flower ends the process instead."""
