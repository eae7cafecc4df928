import numpy as np

from umbel.tensors import Tensors
from umbel_sim.engines.checkpoints import Checkpoints


def test_weights_are_stored_once_and_let_go_of_when_no_job_trains_from_them() -> None:
    class Ref:
        """Alive as long as somebody holds it, as Ray's are."""

    put: list[Tensors] = []

    def store(weights: Tensors) -> Ref:
        put.append(weights)
        return Ref()

    checkpoints = Checkpoints(store)
    first, second = {"w": np.zeros(3)}, {"w": np.zeros(3)}
    one, done_one = checkpoints.use(first)
    two, done_two = checkpoints.use(first)
    assert one is two
    other, done_other = checkpoints.use(second)
    assert other is not one
    done_one()
    assert checkpoints.use(first)[0] is one, "a job still trains from it"
    assert put == [first, second]
    assert put[0] is first
    assert put[1] is second

    done_two()
    done_other()
    assert checkpoints.use(second)[0] is other, "the newest is kept between its jobs"
