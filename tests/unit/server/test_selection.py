import threading
import time

import pytest
from flwr.app import Message, MessageType, RecordDict
from tests.memory_grid import MemoryGrid

from umbel_server import flower_messages
from umbel_server.selection import Selection, TooFewDevices


def answer(message: Message) -> Message:
    return flower_messages.reply(message, {}, {"num-examples": 1.0})


def grid_of(nodes: list[int]) -> MemoryGrid:
    return MemoryGrid({node: answer for node in nodes})


def never() -> bool:
    return False


def select(nodes: list[int], fraction: float, minimum: int, seed: int, round: int = 1) -> list[int]:
    return Selection(grid_of(nodes), fraction, minimum, seed).begin(round, 1.0, never)


def test_the_same_seed_round_and_nodes_give_the_same_devices_whatever_their_order() -> None:
    nodes = list(range(100, 140))
    chosen = select(nodes, 0.25, 1, seed=3)
    assert len(chosen) == 10
    assert chosen == sorted(chosen)
    assert select(nodes[::-1], 0.25, 1, seed=3) == chosen


def test_another_round_or_seed_gives_other_devices() -> None:
    nodes = list(range(100, 140))
    chosen = select(nodes, 0.25, 1, seed=3)
    assert select(nodes, 0.25, 1, seed=3, round=2) != chosen
    assert select(nodes, 0.25, 1, seed=4) != chosen


@pytest.mark.parametrize(
    ("online", "fraction", "minimum", "expected"),
    [(10, 1.0, 1, 10), (10, 0.25, 1, 3), (10, 0.01, 2, 2), (3, 0.01, 1, 1)],
)
def test_a_fraction_is_rounded_half_up_and_the_minimum_holds(
    online: int, fraction: float, minimum: int, expected: int
) -> None:
    assert len(select(list(range(online)), fraction, minimum, seed=0)) == expected


def test_the_strategy_sees_only_the_rounds_devices() -> None:
    selection = Selection(grid_of(list(range(20))), 0.2, 1, seed=0)
    assert list(selection.get_node_ids()) == []
    chosen = selection.begin(1, 1.0, never)
    assert list(selection.get_node_ids()) == chosen
    assert len(chosen) == 4


def test_too_few_devices_are_an_error_after_a_bounded_time() -> None:
    started = time.monotonic()
    with pytest.raises(TooFewDevices, match="round 4 needs 3 devices online, 2 were there"):
        Selection(grid_of([1, 2]), 1.0, 3, seed=0).begin(4, 0.2, never)
    assert time.monotonic() - started < 5


def test_a_device_that_comes_in_time_is_waited_for() -> None:
    grid = grid_of([1])
    looked = threading.Event()

    class Watched(MemoryGrid):
        def get_node_ids(self) -> list[int]:
            nodes = list(grid.nodes)
            looked.set()
            return nodes

    def arrive() -> None:
        assert looked.wait(5)
        grid.nodes[2] = answer

    thread = threading.Thread(target=arrive)
    thread.start()
    assert Selection(Watched({}), 1.0, 2, seed=0).begin(1, 10.0, never) == [1, 2]
    thread.join(5)


def test_a_stop_ends_the_wait() -> None:
    assert Selection(grid_of([1]), 1.0, 2, seed=0).begin(1, 60.0, lambda: True) == [1]


def test_messages_go_and_replies_come_in_the_order_of_nodes() -> None:
    grid = grid_of([3, 1, 2])
    selection = Selection(grid, 1.0, 1, seed=0)
    messages = [selection.create_message(RecordDict(), MessageType.TRAIN, node, "1") for node in (2, 3, 1)]
    replies = selection.send_and_receive(messages, timeout=1.0)
    assert grid.asked == [[1, 2, 3]]
    assert [reply.metadata.src_node_id for reply in replies] == [1, 2, 3]


def test_messages_can_be_pushed_and_pulled() -> None:
    selection = Selection(grid_of([1, 2]), 1.0, 1, seed=0)
    message = selection.create_message(RecordDict(), MessageType.TRAIN, 2, "1")
    (id,) = selection.push_messages([message])
    (reply,) = selection.pull_messages([id])
    assert reply.metadata.reply_to_message_id == id == message.metadata.message_id


def test_the_run_is_the_inner_grids() -> None:
    grid = grid_of([1])
    selection = Selection(grid, 1.0, 1, seed=0)
    selection.set_run(flower_messages.empty_run(77))
    assert selection.run.run_id == grid.run.run_id == 77
