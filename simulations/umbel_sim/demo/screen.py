"""The screen of the demo: one line for each phase, live accuracy, a summary at the end."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from umbel_server.cli.output import duration_text, size_text
from umbel_sim.demo.demo_report import Report

BARS = "▁▂▃▄▅▆▇█"


class Screen:
    """Writes to the terminal; on a pipe only the finished phases are written."""

    def __init__(self) -> None:
        self._console = Console()
        self._news = Text()

    @contextmanager
    def phase(self, name: str, what: str) -> Iterator[None]:
        """Show a phase while it runs, and a line with its seconds and last news when it is over."""
        started = time.monotonic()
        self._news = Text()
        table = Table.grid(padding=(0, 1))
        table.add_row(Spinner("dots", style="cyan"), Text(f"{name:8}", style="bold"), Text(what), self._news)
        try:
            with Live(table, console=self._console, transient=True, refresh_per_second=8):
                yield
        except BaseException:
            self._line("[red]✗[/]", name, what, started)
            raise
        self._line("[green]✓[/]", name, what, started)

    def say(self, text: str) -> None:
        """Write a line."""
        self._console.print(text, highlight=False)

    def news(self, text: str) -> None:
        """Say what the phase is doing now."""
        self._news.plain = text

    def round(self, number: int, rounds: int, accuracy: Sequence[float]) -> None:
        """Say how far training is."""
        if accuracy:
            bars = "".join(BARS[min(7, int(value * 8))] for value in accuracy)
            self.news(f"{number}/{rounds} {bars} accuracy {accuracy[-1]:.3f}")

    def summary(self, report: Report) -> None:
        """The summary table."""
        table = Table(
            title="The fleet",
            title_justify="left",
            header_style="bold",
            box=None,
            pad_edge=False,
        )
        for name in ("device", "trainer"):
            table.add_column(name)
        for name in ("examples", "rounds", "memory", "imports", "right", "personal"):
            table.add_column(name, justify="right")
        for device in report.devices:
            table.add_row(
                device.id,
                device.trainer,
                str(device.examples),
                str(device.rounds),
                f"{device.rss_mb:.0f} MB",
                ", ".join(device.imports) or "none",
                f"{device.answers_right}/{device.answers_total}",
                f"{device.personal_accuracy:.3f}",
            )
        table.caption = "right: answers as Keras gives them; personal: held-out accuracy of the device's own model"
        table.caption_justify = "left"
        models = Table(title="The release", title_justify="left", header_style="bold", box=None, pad_edge=False)
        models.add_column("model")
        models.add_column("size", justify="right")
        for name in ("held-out accuracy", "difference", "one row"):
            models.add_column(name, justify="right")
        models.add_row("Keras", "", f"{report.keras_accuracy:.4f}", "", "")
        for variant, file in report.release.items():
            models.add_row(
                f"TFLite {variant}",
                size_text(file["bytes"]),
                f"{file['accuracy']:.4f}",
                f"{file['difference']:.1e}",
                duration_text(file["latency_ms"]),
            )
        models.caption = "difference: the largest of an output from float32's"
        models.caption_justify = "left"
        for part in ("", table, "", models, ""):
            self._console.print(part)
        self._console.print(f"All of it took [bold]{report.wall_s:.0f} s[/].")

    def _line(self, mark: str, name: str, what: str, started: float) -> None:
        seconds = time.monotonic() - started
        news = f"  [dim]{self._news.plain}[/]" if self._news.plain else ""
        self._console.print(f"{mark} [bold]{name:8}[/] {what}{news}  [dim]{seconds:.1f} s[/]", highlight=False)
