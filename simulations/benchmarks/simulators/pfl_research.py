"""pfl-research's simulation (Granqvist et al., NeurIPS 2024, arXiv 2404.06430) on PyTorch. Needs `pfl` and PyTorch.

Its settings are "threads", one process with two threads, and "processes", two processes of one thread that add by gloo.
"""

import os
import socket
import subprocess
import sys

import torch
import workload
from workload import Case

STOP_SECONDS = 30.0


def train(case: Case) -> tuple[list[float], str]:
    """See workload.main."""
    os.environ["PFL_PYTORCH_DEVICE"] = "cpu"
    if case.setting == "threads":
        torch.set_num_threads(2)
        return rounds(case), "1 process, 2 threads"
    torch.set_num_threads(1)
    if "PFL_WORKER_RANK" in os.environ:
        return rounds(case), ""
    addresses = f"localhost:{free_port()},localhost:{free_port()}"  # the processes meet at the first address
    os.environ["PFL_WORKER_ADDRESSES"] = addresses
    second = subprocess.Popen(
        [sys.executable, __file__, sys.argv[1], os.devnull], env=os.environ | {"PFL_WORKER_RANK": "1"}
    )
    os.environ["PFL_WORKER_RANK"] = "0"
    try:
        seconds = rounds(case)
        second.wait(STOP_SECONDS)
    finally:
        second.kill()
        second.wait()
    return seconds, "2 processes"


def rounds(case: Case) -> list[float]:
    """Train in this process. The import is here because pfl reads the environment, and connects, when it is imported."""
    import pfl_rounds

    return pfl_rounds.rounds(case)


def free_port() -> int:
    """A free TCP port on loopback."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return int(sock.getsockname()[1])


if __name__ == "__main__":
    workload.main(train)
