"""Flower's Ray simulation of a Keras ClientApp that calls `fit`, on two actors of one CPU each. Needs Flower, Ray, Keras.

Its settings are "kept", where an actor makes its model once, and "new", where it makes one for every user, as the
TensorFlow example of Flower's own documentation does.
"""

import functools
from typing import Any

import flower_ray  # imports itself: Ray sends a module's functions by name, so a worker's cached model stays between users
import workload
from flwr.app import ArrayRecord, ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.serverapp.strategy import FedAvg
from workload import BATCH, EXAMPLES, RATE, Case

from umbel.keras_import import import_keras
from umbel_sim.reference_models import REFERENCE_MODELS

client = ClientApp()


@functools.cache
def compiled(name: str) -> Any:
    """The compiled model of this process, made once."""
    import_keras()
    import keras

    model = REFERENCE_MODELS[name].model()
    model.compile(optimizer=keras.optimizers.SGD(RATE), loss="sparse_categorical_crossentropy")
    return model


@client.train()
def fit(message: Message, context: Context) -> Message:
    """Train one local epoch."""
    name, setting = str(message.content["config"]["model"]), str(message.content["config"]["setting"])
    if setting == "new":
        compiled.cache_clear()
        import_keras()
        import keras

        keras.backend.clear_session()
    model = compiled(name)
    model.set_weights(message.content["arrays"].to_numpy_ndarrays())
    x, y = workload.examples(name, int(context.node_config["partition-id"]))
    history = model.fit(x, y, epochs=1, batch_size=BATCH, verbose=0)
    metrics = MetricRecord({"num-examples": EXAMPLES, "train_loss": history.history["loss"][-1]})
    return Message(RecordDict({"arrays": ArrayRecord(model.get_weights()), "metrics": metrics}), reply_to=message)


def train(case: Case) -> tuple[list[float], str]:
    """See workload.main."""
    from flwr.simulation import run_simulation

    server, clock, failures = ServerApp(), workload.Clock(), []

    class Complete(FedAvg):
        """FedAvg that records the rounds in which a client failed."""

        def aggregate_train(self, server_round: int, replies: Any) -> Any:
            heard = list(replies)
            good = sum(not reply.has_error() for reply in heard)
            if good != case.cohort:
                failures.append(f"round {server_round} aggregated {good} updates of {case.cohort}")
            return super().aggregate_train(server_round, heard)

    @server.main()
    def rounds(grid: Grid, context: Context) -> None:
        strategy = Complete(
            fraction_train=case.cohort / case.devices,
            fraction_evaluate=0.0,
            min_train_nodes=case.cohort,
            min_available_nodes=case.devices,
        )
        initial = compiled(case.model).get_weights()
        result = strategy.start(
            grid,
            ArrayRecord(initial),
            num_rounds=case.rounds,
            train_config=ConfigRecord({"model": case.model, "setting": case.setting}),
            evaluate_fn=lambda number, arrays: clock.tick(),
        )
        workload.check_weights(initial, result.arrays.to_numpy_ndarrays())

    config = {"client_resources": {"num_cpus": 1, "num_gpus": 0.0}, "init_args": {"num_cpus": 2}}
    run_simulation(server, flower_ray.client, case.devices, backend_config=config)
    if failures:
        raise RuntimeError("; ".join(failures))
    return (
        clock.seconds,
        "2 actors, their models kept" if case.setting == "kept" else "2 actors, a new model for every user",
    )


if __name__ == "__main__":
    workload.main(train)
