#!/usr/bin/env bash
# Flower's FedAdam makes the moving variance of a batch norm negative.
#
# Version:   flwr 1.42.0
# Behaviour: the strategy steps every array of the model as Adam steps a weight, moving statistics included. Adam's first steps have
#            the size of `eta` whatever the difference is. Clients report a variance that shrinks from 0.03 to 0.02; with
#            the default eta of 0.1 the global one is below zero after one round. A model that normalises with it answers NaN.
# Expected:  what no gradient trains is averaged (0.02 here), as FedAvg does; or the documentation says to leave it out.
# Output:    FedAvg : [0.02]
#            FedAdam: [-0.0071]
# Way out:   average moving statistics beside the strategy, and give it the trained weights only.
# Exit code: 0 while the behaviour is there, 1 when it has changed, 2 when the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check flwr==1.42.0 numpy==2.4.6 || exit 2
FLWR_TELEMETRY_ENABLED=0 "$folder/venv/bin/python" - <<'EOF'
import logging
import sys

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAdam, FedAvg
from flwr.supercore.task_identity import TaskIdentity

logging.getLogger("flwr").setLevel(logging.ERROR)
TaskIdentity.run_id = TaskIdentity.task_id = TaskIdentity.node_id = 1  # as a running ServerApp has them
NAME = "batch_norm/moving_variance"


class TwoNodes:
    """As much of a grid as choosing nodes needs."""

    def get_node_ids(self):
        return [1, 2]


def after_one_round(strategy):
    arrays = ArrayRecord({NAME: Array(np.float32([0.03]))})
    asked = strategy.configure_train(1, arrays, ConfigRecord(), TwoNodes())
    reported = RecordDict(
        {
            "arrays": ArrayRecord({NAME: Array(np.float32([0.02]))}),
            "metrics": MetricRecord({"num-examples": 10}),
        }
    )
    combined, _ = strategy.aggregate_train(1, [Message(reported, reply_to=message) for message in asked])
    return combined[NAME].numpy()


averaged, stepped = after_one_round(FedAvg()), after_one_round(FedAdam())
print("FedAvg :", [round(float(value), 4) for value in averaged])
print("FedAdam:", [round(float(value), 4) for value in stepped])
sys.exit(not (np.isclose(averaged, 0.02).all() and (stepped < 0).all()))
EOF
