"""A real agent in the process of the test, for tests that read its state."""

import threading
import time
from collections.abc import Callable

from umbel_edge.agent import Agent
from umbel_edge.config import AgentConfig


class RunningAgent:
    """A real agent in a thread, ended by `stop`."""

    def __init__(self, config: AgentConfig, clock: Callable[[], float] = time.time) -> None:
        self.agent = Agent(config, clock)
        self._thread = threading.Thread(target=self.agent.run, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.agent.stop()
        self._thread.join(15)
        assert not self._thread.is_alive()
