"""FedAvg as a bare loop on Keras: a user's epoch is one tf.function, compiled by XLA. It does only the arithmetic."""

from typing import Any

import workload
from workload import BATCH, EXAMPLES, RATE, Case

from umbel.keras_import import import_keras
from umbel_sim.reference_models import REFERENCE_MODELS


def train(case: Case) -> tuple[list[float], str]:
    """See workload.main."""
    import_keras()
    import keras
    import tensorflow as tf

    model = REFERENCE_MODELS[case.model].model()
    loss = keras.losses.SparseCategoricalCrossentropy()

    @tf.function(jit_compile=True)  # type: ignore[untyped-decorator,unused-ignore]
    def epoch(weights: Any, x: Any, y: Any) -> Any:
        for start in range(0, EXAMPLES, BATCH):
            with tf.GradientTape() as tape:
                tape.watch(weights)
                outputs, _ = model.stateless_call(weights, [], x[start : start + BATCH], training=True)
                value = loss(y[start : start + BATCH], outputs)
            weights = [
                weight - RATE * slope for weight, slope in zip(weights, tape.gradient(value, weights), strict=True)
            ]
        return weights

    @tf.function(jit_compile=True)  # type: ignore[untyped-decorator,unused-ignore]
    def fold(total: Any, weights: Any) -> Any:
        return [one + other / case.cohort for one, other in zip(total, weights, strict=True)]

    weights = [tf.convert_to_tensor(variable.value) for variable in model.trainable_variables]
    initial = [weight.numpy() for weight in weights]
    users = [[tf.constant(array) for array in workload.examples(case.model, user)] for user in range(case.devices)]
    clock = workload.Clock()
    clock.tick()
    for cohort in workload.cohorts(case):
        total = [tf.zeros_like(weight) for weight in weights]
        for user in cohort:
            total = fold(total, epoch(weights, *users[user]))
        weights = total
        weights[0].numpy()
        clock.tick()
    workload.check_weights(initial, [weight.numpy() for weight in weights])
    return clock.seconds, "XLA"


if __name__ == "__main__":
    workload.main(train)
