"""The progress of a compilation in a terminal: the stage, a bar that moves with time, and an estimate of the time left."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from rich.console import Console
from rich.progress import BarColumn, Progress, ProgressColumn, SpinnerColumn, Task, TextColumn
from rich.progress_bar import ProgressBar
from rich.text import Text

from umbel_server.compiler import Stage


@dataclass(frozen=True)
class Estimate:
    """The share of the work that is done (0 to 1), and the seconds that remain; None before an estimate is possible."""

    done: float
    left: float | None


def estimate(stage: Stage, began: float, elapsed: float) -> Estimate:
    """Estimate the rest of the work after `elapsed` seconds, of which `began` passed before this stage."""
    if stage.begins <= 0:
        return Estimate(0.0, None)
    whole = began / stage.begins
    done = min(elapsed / max(whole, 1e-9), stage.ends)
    return Estimate(max(done, stage.begins), whole * (1 - done))


class _Bar(BarColumn):
    def render(self, task: Task) -> ProgressBar:
        task.completed = _of(task).done
        return super().render(task)


class _Left(ProgressColumn):
    def render(self, task: Task) -> Text:
        left, elapsed = _of(task).left, task.elapsed or 0.0
        ahead = "" if left is None else f", about {_time(max(1.0, left))} left"
        return Text(f"{_time(elapsed)}{ahead}", style="dim")


@contextmanager
def progress_of(name: str) -> Iterator[Callable[[Stage], None]]:
    """Show the progress of compiling task `name` on a terminal's stderr, and clear it at the end; without a terminal show nothing."""
    text = TextColumn("[bold]{task.fields[name]}[/] {task.description}")
    columns = (SpinnerColumn(), text, _Bar(bar_width=24), _Left())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        first = Stage("starting", 0, 0, 0.0, 0.0)
        bar = progress.add_task("starting", total=1.0, name=name, stage=first, began=0.0)

        def show(stage: Stage) -> None:
            began = progress.tasks[0].elapsed or 0.0
            progress.update(bar, description=f"{stage.number}/{stage.count} {stage.text}", stage=stage, began=began)

        yield show


def _of(task: Task) -> Estimate:
    return estimate(task.fields["stage"], task.fields["began"], task.elapsed or 0.0)


def _time(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole} s" if whole < 100 else f"{whole // 60} min {whole % 60:02d} s"
