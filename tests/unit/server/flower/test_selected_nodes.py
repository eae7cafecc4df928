from flwr.app import Message, MessageType, RecordDict

from tests.memory_grid import MemoryGrid
from umbel_server.flower import internals
from umbel_server.flower import messages as flower_messages
from umbel_server.flower.selected_nodes import SelectedNodes


def answer(message: Message) -> Message:
    return flower_messages.reply(message, {}, {"num-examples": 1.0})


def grid_of(nodes: list[int]) -> MemoryGrid:
    return MemoryGrid({node: answer for node in nodes})


def test_the_strategy_sees_only_the_chosen_devices() -> None:
    assert SelectedNodes(grid_of(list(range(20))), [7, 3]).get_node_ids() == [3, 7]


def test_messages_reach_the_inner_grid() -> None:
    grid = grid_of([1, 2])
    selected = SelectedNodes(grid, [1, 2])
    messages = [selected.create_message(RecordDict(), MessageType.TRAIN, node, "1") for node in (2, 1)]
    (first, *_) = ids = list(selected.push_messages(messages))
    assert grid.asked == [[2, 1]]
    (reply,) = selected.pull_messages([first])
    assert reply.metadata.reply_to_message_id == ids[0] == messages[0].metadata.message_id
    (reply,) = selected.send_and_receive([selected.create_message(RecordDict(), MessageType.TRAIN, 2, "1")])
    assert reply.metadata.src_node_id == 2


def test_the_run_is_the_inner_grids() -> None:
    grid = grid_of([1])
    selected = SelectedNodes(grid, [1])
    selected.set_run(internals.empty_run(77))
    assert selected.run.run_id == grid.run.run_id == 77
