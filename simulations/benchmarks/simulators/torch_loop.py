"""FedAvg as a bare loop on PyTorch, in two processes of one thread. It does only the arithmetic. Needs PyTorch."""

import sys
import tempfile

import torch
import torch.distributed
import torch_models
import workload
from torch.multiprocessing.spawn import spawn
from torch.nn.functional import cross_entropy
from workload import BATCH, EXAMPLES, RATE, Case

PROCESSES = 2


def worker(rank: int, case: Case, meeting: str, seconds: "torch.multiprocessing.SimpleQueue[list[float]]") -> None:
    """Train every second user of each cohort; the processes then add their sums."""
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=PROCESSES)
    model = torch_models.make(case.model)
    parameters = list(model.parameters())
    users = [torch_models.examples(case.model, user) for user in range(case.devices)]
    weights = [parameter.detach().clone() for parameter in parameters]
    initial = [weight.numpy().copy() for weight in weights]
    clock = workload.Clock()
    torch.distributed.barrier()
    clock.tick()
    for cohort in workload.cohorts(case):
        total = [torch.zeros_like(weight) for weight in weights]
        for user in cohort[rank::PROCESSES]:
            x, y = users[user]
            with torch.no_grad():
                torch._foreach_copy_(parameters, weights)
            for start in range(0, EXAMPLES, BATCH):
                loss = cross_entropy(model(x[start : start + BATCH]), y[start : start + BATCH])
                slopes = torch.autograd.grad(loss, parameters)
                with torch.no_grad():
                    torch._foreach_add_(parameters, slopes, alpha=-RATE)
            with torch.no_grad():
                torch._foreach_add_(total, parameters, alpha=1 / case.cohort)
        for tensor in total:
            torch.distributed.all_reduce(tensor)
        weights = total
        clock.tick()
    workload.check_weights(initial, [weight.numpy() for weight in weights])
    if rank == 0:
        seconds.put(clock.seconds)
    torch.distributed.destroy_process_group()


def train(case: Case) -> tuple[list[float], str]:
    """See workload.main."""
    seconds = torch.multiprocessing.get_context("spawn").SimpleQueue()
    with tempfile.TemporaryDirectory(prefix="umbel-torch-") as folder:
        spawn(worker, (case, f"{folder}/meeting", seconds), PROCESSES)
    found: list[float] = seconds.get()
    return found, f"{PROCESSES} processes"


if __name__ == "__main__":
    workload.main(train)
    sys.exit()
