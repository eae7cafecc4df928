"""Umbel's simulations: thousands of virtual devices in one process, and the demo.

from umbel_sim import simulate
result = simulate("task.py", "mnist", devices=100, partition="shards:2", fraction=0.1, rounds=100)
result.rounds.plot("round", "test_accuracy")
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from umbel_sim.python_api import simulate, sweep
    from umbel_sim.report.result import Result

__all__ = ["Result", "simulate", "sweep"]


def __getattr__(name: str) -> Any:
    """The names above, imported when they are asked for: other parts of this package need no Flower."""
    if name == "Result":
        from umbel_sim.report.result import Result

        return Result
    if name in __all__:
        from umbel_sim import python_api

        return getattr(python_api, name)
    raise AttributeError(name)
