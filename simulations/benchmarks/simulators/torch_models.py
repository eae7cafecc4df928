"""The two models of the comparison in PyTorch: those of umbel_sim.reference_models, layer by layer. Needs PyTorch."""

import torch
import workload
from torch import Tensor, nn


def make(name: str) -> nn.Module:
    """A seeded model; its convolutions are in channels-last order, the fastest one on a processor."""
    torch.manual_seed(0)
    if name == "mlp":
        return nn.Sequential(nn.Linear(784, 200), nn.ReLU(), nn.Linear(200, 200), nn.ReLU(), nn.Linear(200, 10))
    model = nn.Sequential(
        *(nn.Conv2d(1, 32, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Conv2d(32, 64, 5, padding=2), nn.ReLU(), nn.MaxPool2d(2)),
        *(nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 10)),
    )
    return model.to(memory_format=torch.channels_last)


def examples(name: str, user: int) -> tuple[Tensor, Tensor]:
    """A user's examples as tensors."""
    x, y = (torch.from_numpy(array) for array in workload.examples(name, user))
    if name != "mlp":
        x = x.permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
    return x, y.long()
