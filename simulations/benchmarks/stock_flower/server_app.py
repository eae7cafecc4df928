"""A ServerApp that records the duration of each round of stock FedAvg."""

import json
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
from flwr.app import Array, ArrayRecord, Context
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg

app = ServerApp()


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Write `{"seconds": [one a round], "mean_weight": ...}` to `output` after `rounds` rounds on `nodes` nodes."""
    config = context.run_config
    nodes, rounds = int(config["nodes"]), int(config["rounds"])
    while len(list(grid.get_node_ids())) < nodes:
        time.sleep(0.1)
    ends: list[float] = []

    def note(server_round: int, arrays: ArrayRecord) -> None:
        ends.append(time.monotonic())

    strategy = FedAvg(fraction_evaluate=0.0, min_train_nodes=nodes, min_available_nodes=nodes)
    weights = ArrayRecord({"weights": Array(np.zeros(int(config["weights"]), np.float32))})
    result = strategy.start(grid, weights, num_rounds=rounds, evaluate_fn=note)
    report = {
        "seconds": [end - begin for begin, end in pairwise(ends)],
        "mean_weight": float(result.arrays["weights"].numpy().mean()),
    }
    output = Path(str(config["output"]))
    unfinished = output.with_suffix(".part")
    unfinished.write_text(json.dumps(report))
    unfinished.replace(output)
