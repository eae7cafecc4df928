"""A plan that has weights and nothing to run, for what is only about weights."""

from pathlib import Path

from tests.memory_grid import weights
from umbel.metrics import MetricSpec
from umbel.plan import INITIAL, SCHEMA, Manifest, Plan
from umbel.tensors import TensorSpec, WeightSpec, dump


def bare_plan(path: Path) -> Plan:
    """A plan of the weights of tests.memory_grid; its learning rate is 0.25."""
    manifest = Manifest(
        schema=SCHEMA,
        task="bare",
        batch_size=1,
        learning_rate=0.25,
        loss="mse",
        optimizer="sgd",
        metrics=(MetricSpec("accuracy", "mean", {"total": ()}),),
        inputs={"x": TensorSpec((1,))},
        targets={"y": TensorSpec((1,))},
        outputs={"output": TensorSpec((1,))},
        weights=tuple(WeightSpec(name, weight.shape) for name, weight in weights().items()),
        weight_maps={},
        parity={},
        producer={},
        files={},
    )
    return Plan.write(path, manifest, {INITIAL: dump(weights())})
