"""Random small networks train, evaluate and infer in the plan as they do in Keras."""

import os
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import HealthCheck, Phase, assume, given, settings

from tests.contract.server.compiler.networks import Network, networks
from umbel_server.compiler import CompileError, compile_task

NETWORKS = int(os.environ.get("UMBEL_NETWORKS", "0"))
"""How many random networks to try; 0: a few, the same every time."""


@pytest.mark.timeout(0 if NETWORKS else 300)
@settings(
    max_examples=NETWORKS or 8,
    derandomize=not NETWORKS,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=[Phase.generate, *([Phase.shrink] if NETWORKS else [])],
)
@given(networks())
@pytest.mark.long
def test_random_networks_train_as_in_keras(network: Network) -> None:
    with TemporaryDirectory() as folder:
        try:
            parity = compile_task(network.task(), Path(folder) / "random.plan").manifest.parity
        except CompileError as error:
            assume("in Keras itself" not in str(error))
            raise
    # `updates`: rounding decides, in Keras too, and the check compared the weights by how far each step moves them.
    named = ("loss", "evaluate", "infer", *(() if "updates" in parity else ("weights", "slots")))
    assert max(parity[name] for name in named) <= 1e-4
