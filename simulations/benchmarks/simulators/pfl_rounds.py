"""The rounds of pfl_research.py: FedAvg as pfl-research's own benchmarks set it up, in one process or in one of two."""

from typing import Any

import numpy as np
import torch
import torch_models
import workload
from pfl.aggregate.simulate import SimulatedBackend
from pfl.aggregate.weighting import WeightByDatapoints
from pfl.algorithm.base import NNAlgorithmParams
from pfl.algorithm.federated_averaging import FederatedAveraging
from pfl.callback.base import TrainingProcessCallback
from pfl.data.federated_dataset import FederatedDataset
from pfl.data.pytorch import PyTorchTensorDataset
from pfl.data.sampling import get_user_sampler
from pfl.hyperparam.base import NNTrainHyperParams
from pfl.metrics import Metrics, Weighted
from pfl.model.pytorch import PyTorchModel
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from workload import BATCH, RATE, Case


class Classifier(nn.Module):
    """A model with the methods `loss` and `metrics` that pfl calls."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.layers = layers

    def loss(self, x: Tensor, y: Tensor) -> Tensor:
        """The cross-entropy, which a training step minimises."""
        return cross_entropy(self.layers(x), y)

    @torch.no_grad()
    def metrics(self, x: Tensor, y: Tensor) -> dict[str, Weighted]:
        """The metrics of a user, which pfl evaluates in the first round only."""
        return {"loss": Weighted(cross_entropy(self.layers(x), y, reduction="sum").item(), len(y))}


class Ticking(TrainingProcessCallback[Any]):
    """Ticks a clock at the beginning, and after every round."""

    def __init__(self, clock: workload.Clock) -> None:
        self._clock = clock

    def on_train_begin(self, *, model: Any) -> Metrics:
        """As TrainingProcessCallback."""
        self._clock.tick()
        return Metrics()

    def after_central_iteration(
        self, aggregate_metrics: Metrics, model: Any, *, central_iteration: int
    ) -> tuple[bool, Metrics]:
        """As TrainingProcessCallback."""
        self._clock.tick()
        return False, Metrics()


def rounds(case: Case) -> list[float]:
    """Train in this process, which may be one of two."""
    np.random.seed(0)
    layers = torch_models.make(case.model)
    initial = [parameter.detach().numpy().copy() for parameter in layers.parameters()]
    classifier = Classifier(layers)
    model = PyTorchModel(classifier, torch.optim.SGD, torch.optim.SGD(classifier.parameters(), lr=1.0))
    users = [torch_models.examples(case.model, user) for user in range(case.devices)]
    sampler = get_user_sampler("random", range(case.devices))
    data = FederatedDataset(lambda user: PyTorchTensorDataset(users[user], user_id=str(user)), sampler)
    backend = SimulatedBackend(data, data, [WeightByDatapoints()])
    clock = workload.Clock()
    FederatedAveraging().run(
        NNAlgorithmParams(
            central_num_iterations=case.rounds,
            evaluation_frequency=case.rounds + 1,
            train_cohort_size=case.cohort,
            val_cohort_size=0,
        ),
        backend,
        model,
        NNTrainHyperParams(local_batch_size=BATCH, local_num_epochs=1, local_learning_rate=RATE),
        callbacks=[Ticking(clock)],
        send_metrics_to_platform=False,
    )
    workload.check_weights(initial, [parameter.detach().numpy() for parameter in layers.parameters()])
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    return clock.seconds
