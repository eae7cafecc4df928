"""How often a watch looks while a value changes."""

import threading

from umbel_edge.device.change_watch import ChangeWatch


def test_a_watch_that_sees_change_after_change_looks_more_seldom() -> None:
    class Passing(threading.Event):
        """Records pauses and ends each at once; is set at the ninth."""

        def __init__(self) -> None:
            super().__init__()
            self.pauses: list[float | None] = []

        def wait(self, timeout: float | None = None) -> bool:
            self.pauses.append(timeout)
            return len(self.pauses) > 8

    values = iter([0, 1, 2, 3, 3, 3, 4, 5, 6])
    said: list[int] = []
    passing = Passing()
    watch: ChangeWatch[int] = ChangeWatch(lambda: next(values), lambda: said.append(1), passing, 3.0, 10.0)
    watch.run()
    assert passing.pauses == [3.0, 6.0, 10.0, 10.0, 3.0, 3.0, 6.0, 10.0, 10.0]
    assert len(said) == 6
    assert watch.seen == 6
