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
    """Import a public name at its first use, so that other parts of this package do not need Flower."""
    if name == "Result":
        from umbel_sim.report.result import Result

        return Result
    if name in __all__:
        from umbel_sim import python_api

        return getattr(python_api, name)
    raise AttributeError(name)
