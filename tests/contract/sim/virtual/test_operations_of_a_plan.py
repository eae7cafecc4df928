from collections.abc import Callable

from umbel.plan import Plan
from umbel_sim.virtual.operations import training_operations


def test_a_plan_s_training_is_counted_from_its_graph(plan_of: Callable[[str], Plan]) -> None:
    convolution, hidden, output = 8 * 8 * 16 * 9, 4 * 4 * 16 * 32, 32 * 10
    assert training_operations(plan_of("digits")) == 6.0 * (convolution + hidden + output)
