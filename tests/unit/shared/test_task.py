from pathlib import Path

import pytest

from umbel import Task, TensorSpec, load_task
from umbel.errors import TaskError

GOOD = """
from umbel import Task, TensorSpec
task = Task(name="t", model=lambda: None, loss="mse", inputs=TensorSpec((1,)), targets=TensorSpec((1,)))
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "task.py"
    path.write_text(text)
    return path


def test_a_task_file_gives_its_task(tmp_path: Path) -> None:
    task = load_task(write(tmp_path, GOOD))
    assert (task.name, task.input_specs, task.target_specs) == ("t", {"x": TensorSpec((1,))}, {"y": TensorSpec((1,))})


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("x = 1", "no Task in this file"),
        (GOOD + "other = Task(name='u', model=None, loss='mse', inputs={}, targets={})", "expected one Task, found 2"),
        ("raise ValueError('boom')", "ValueError: boom"),
        ("def (", "could not be run"),
        (GOOD.replace('name="t"', 'name="No Spaces"'), "a task's name is"),
        (GOOD.replace('loss="mse"', 'loss="mse", batch_size=0'), "batch_size must be at least 1"),
        (GOOD.replace('loss="mse"', 'loss="mse", learning_rate=0'), "learning_rate must be positive"),
    ],
)
def test_files_without_a_usable_task_are_refused(tmp_path: Path, text: str, sentence: str) -> None:
    with pytest.raises(TaskError, match=sentence):
        load_task(write(tmp_path, text))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no such task file"):
        load_task(tmp_path / "absent.py")


def test_several_inputs_keep_their_names() -> None:
    specs = {"left": TensorSpec((2,)), "right": TensorSpec((3,))}
    task = Task(name="two", model=lambda: None, loss="mse", inputs=specs, targets=TensorSpec(()))
    assert task.input_specs == specs


def test_a_shape_is_the_spec_of_float32_numbers() -> None:
    task = Task("t", lambda: None, "mse", (4,), {"a": (1,), "b": TensorSpec((), "int32")})
    assert task.input_specs == {"x": TensorSpec((4,))}
    assert task.target_specs == {"a": TensorSpec((1,)), "b": TensorSpec((), "int32")}


@pytest.mark.parametrize("wrong", [4, "float32", (4, "x"), (-1,), None])
def test_inputs_that_are_no_spec_are_refused_with_what_to_write(wrong: object) -> None:
    with pytest.raises(
        TaskError, match=r"its inputs should be a TensorSpec, or the shape of one example such as \(4,\); got"
    ):
        Task("t", lambda: None, "mse", wrong, TensorSpec((1,)))  # type: ignore[arg-type]


def test_metrics_are_a_tuple_however_they_are_given() -> None:
    def metrics(given: object) -> object:
        return Task("t", lambda: None, "mse", (4,), (1,), metrics=given).metrics  # type: ignore[arg-type]

    assert metrics("accuracy") == metrics(["accuracy"]) == metrics(("accuracy",)) == ("accuracy",)
    assert metrics({"a": "mae", "b": ["mae", "mse"]}) == {"a": ("mae",), "b": ("mae", "mse")}
