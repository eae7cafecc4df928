"""Pictures of a simulation; every function gives a matplotlib figure that belongs to the caller."""

import io
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from umbel_sim.simulation.outcome import Outcome

INK, MUTED, GRID = "#1f2933", "#7b8794", "#e4e7eb"
BLUE, ORANGE, GREEN, RED, VIOLET, GOLD = "#2066b0", "#d9730d", "#2b8a57", "#c0392b", "#7253b5", "#c29b0c"
COLOURS = (BLUE, ORANGE, GREEN, VIOLET, RED, GOLD, "#0f7c90", "#8a4b2b")
SHARES = ("accuracy", "precision", "recall", "auc")
"""Metrics that are shares of 1, by what their names contain."""

ENDS = {
    "folded": BLUE,
    "cancelled": "#b8c4d0",
    "declined": GOLD,
    "failed": ORANGE,
    "vanished": VIOLET,
    "expired": RED,
    "rejected": INK,
}


def _figure(width: float, height: float, columns: int = 1) -> tuple[Figure, list[Axes]]:
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = [figure.add_subplot(1, columns, number + 1) for number in range(columns)]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.spines[["left", "bottom"]].set_color(MUTED)
        one.tick_params(colors=INK, labelsize=9)
        one.grid(axis="y", color=GRID, linewidth=0.8)
        one.set_axisbelow(True)
    return figure, axes


def _name(axes: Axes, title: str, x: str, y: str) -> None:
    axes.set_title(title, loc="left", fontsize=11, color=INK, fontweight="bold")
    axes.set_xlabel(x, fontsize=9, color=INK)
    axes.set_ylabel(y, fontsize=9, color=INK)


def _is_share(metric: str) -> bool:
    return any(part in metric for part in SHARES)


def _as_share(axes: Axes, metric: str) -> None:
    if _is_share(metric):
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))


def _values(rows: Sequence[dict[str, Any]], key: str) -> "np.ndarray[Any, Any]":
    return np.array([row.get(key, np.nan) for row in rows], float)


def learning(outcome: Outcome) -> Figure:
    """Held-out metric and loss by round, and the metric by virtual hour."""
    figure, axes = _figure(10, 3.2, 3)
    rounds, seconds = _values(outcome.rows, "round"), _values(outcome.rows, "virtual_hours") * 3600
    length, unit = _unit(float(seconds[-1]))
    metric = outcome.metric
    for one, x, key, label in (
        (axes[0], rounds, metric, "round"),
        (axes[1], seconds / length, metric, f"virtual {unit}"),
        (axes[2], rounds, "loss", "round"),
    ):
        colour = BLUE if key == metric else ORANGE
        held, trained = _values(outcome.rows, f"test_{key}"), _values(outcome.rows, f"train_{key}")
        if np.isfinite(trained).any():
            one.plot(x, trained, color=MUTED, linewidth=1, alpha=0.7, label="on devices, while training")
        if np.isfinite(held).any():
            one.plot(x, held, color=colour, linewidth=1.8, label="held out")
        if key == outcome.settings.until and np.isfinite(held).any():
            one.axhline(outcome.settings.at_least, color=GREEN, linewidth=1, linestyle=(0, (4, 3)))
        _name(one, f"{key.replace('_', ' ').capitalize()} by {label.removesuffix('s')}", label, "")
        _as_share(one, key)
        one.set_xlim(left=0)
        if label == "round":
            one.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    if axes[2].lines:
        axes[2].legend(frameon=False, fontsize=8, labelcolor=INK)
    return figure


def devices(outcome: Outcome) -> Figure:
    """A histogram over devices: the newest checkpoint's metric on each device's own examples."""
    figure, (axes,) = _figure(5, 3.2)
    metric = outcome.metric
    values = np.array([row.get(metric, np.nan) for row in outcome.on_devices])
    values = values[np.isfinite(values)]
    if values.size:
        span = (max(0.0, float(values.min()) - 0.02), 1.0) if _is_share(metric) else None
        axes.hist(values, bins=24, range=span, color=BLUE, edgecolor="white", linewidth=0.6)
        for share, style in ((10, (0, (2, 2))), (50, "-")):
            at = float(np.percentile(values, share))
            axes.axvline(at, color=INK, linewidth=1, linestyle=style)
            text = f" median {at:.3g}" if share == 50 else f"worst tenth below {at:.3g} "
            top = axes.get_ylim()[1]
            side = "left" if share == 50 else "right"
            axes.text(at, top * (0.97 if share == 50 else 0.86), text, fontsize=8, color=INK, ha=side, va="top")
    if _is_share(metric):
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _name(axes, f"{metric.capitalize()} on each device's examples", metric, "devices")
    return figure


def participation(outcome: Outcome) -> Figure:
    """A histogram of devices by the number of their folded updates."""
    figure, (axes,) = _figure(5, 3.2)
    counts = outcome.participation
    most = int(counts.max(initial=0))
    bins = np.arange(-0.5, most + 1.5) if most <= 40 else np.linspace(-0.5, most + 0.5, 41)
    axes.hist(counts, bins=bins.tolist(), color=GREEN, edgecolor="white", linewidth=0.6)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _name(axes, "How often devices took part", "updates folded", "devices")
    return figure


def data(outcome: Outcome) -> Figure:
    """A heat map of labels by device: each column is a device, darker is more examples."""
    figure, (axes,) = _figure(10, 3.4)
    histogram = outcome.statistics.histogram.T
    axes.grid(False)
    picture = axes.imshow(histogram, aspect="auto", cmap="Blues", interpolation="nearest", vmin=0)
    classes = outcome.statistics.classes
    if len(classes) <= 20:
        axes.set_yticks(range(len(classes)), [str(own) for own in classes])
    sampled = outcome.statistics.sampled
    ticks = np.unique(np.linspace(0, len(sampled) - 1, min(len(sampled), 8)).astype(int))
    axes.set_xticks(ticks, [str(sampled[tick]) for tick in ticks])
    bar = figure.colorbar(picture, ax=axes, pad=0.01)
    bar.set_label("examples", fontsize=9, color=INK)
    bar.outline.set_visible(False)
    more = (
        f" ({len(sampled)} of {outcome.settings.devices:,} devices)" if len(sampled) < outcome.settings.devices else ""
    )
    _name(axes, f"Labels by device: {outcome.settings.partition}{more}", "device", "label")
    return figure


def work(outcome: Outcome) -> Figure:
    """The final states of assignments by round."""
    figure, (axes,) = _figure(5, 3.2)
    rows = outcome.rows[1:]
    if rows:
        groups = np.array_split(np.arange(len(rows)), min(len(rows), 60))
        x = np.array([rows[group[-1]]["round"] for group in groups], float)
        width = (x[-1] - x[0]) / max(1, len(x) - 1) if len(x) > 1 else 1.0
        bottom = np.zeros(len(groups))
        for state, colour in ENDS.items():
            height = np.array([np.mean([rows[index].get(state, 0) for index in group]) for group in groups])
            if height.any():
                axes.bar(x, height, width, bottom=bottom, color=colour, label=state, linewidth=0)
                bottom += height
        axes.set_ylim(top=float(bottom.max()) * 1.18)
        axes.legend(frameon=False, fontsize=8, ncols=4, labelcolor=INK, loc="upper left")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    _name(axes, "What became of assignments", "round", "a round")
    return figure


def duration(outcome: Outcome) -> Figure:
    """The duration of rounds in virtual time."""
    figure, (axes,) = _figure(5, 3.2)
    rows = outcome.rows[1:]
    seconds = _values(rows, "round_seconds")
    length, unit = _unit(float(seconds.max(initial=0.0)))
    axes.plot(_values(rows, "round"), seconds / length, color=VIOLET, linewidth=1.4)
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    _name(axes, "How long rounds took", "round", f"virtual {unit}")
    return figure


def _unit(seconds: float) -> tuple[float, str]:
    """The length and name of the unit in which a time is shown."""
    return next((own for own in ((3600.0, "hours"), (60.0, "minutes")) if seconds >= 2 * own[0]), (1.0, "seconds"))


def comparison(curves: Sequence[tuple[str, Sequence[Outcome]]], metric: str) -> Figure:
    """The held-out metric of several variants by round: the mean over seeds, and their range as a band."""
    figure, (axes,) = _figure(8, 4)
    for number, (label, results) in enumerate(curves):
        colour = COLOURS[number % len(COLOURS)]
        length = min(len(own.rows) for own in results)
        rounds = _values(results[0].rows[:length], "round")
        values = np.stack([_values(own.rows[:length], f"test_{metric}") for own in results])
        axes.plot(rounds, values.mean(0), color=colour, linewidth=1.8, label=label)
        if len(results) > 1:
            axes.fill_between(rounds, values.min(0), values.max(0), color=colour, alpha=0.15, linewidth=0)
    _as_share(axes, metric)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    _name(axes, f"Held-out {metric.replace('_', ' ')}", "round", "")
    return figure


def lines(
    curves: Sequence[tuple[str, Sequence[float], Sequence[float]]],
    title: str,
    x: str,
    metric: str,
    *,
    log: bool = False,
) -> Figure:
    """Curves of (label, x, y): any figure by any other; with `log` both axes are logarithmic."""
    figure, (axes,) = _figure(8, 4)
    for number, (label, xs, ys) in enumerate(curves):
        marker = "o" if len(xs) <= 12 else None
        axes.plot(xs, ys, color=COLOURS[number % len(COLOURS)], linewidth=1.8, marker=marker, markersize=4, label=label)
    if log:
        axes.set_xscale("log")
        axes.set_yscale("log")
    _as_share(axes, metric)
    axes.legend(frameon=False, fontsize=9, labelcolor=INK)
    _name(axes, title, x, metric)
    return figure


def stacks(layers: Sequence[tuple[str, Sequence[float]]], title: str, x: str, y: str) -> Figure:
    """Bars of (label, heights) on top of each other, one at each of 0, 1, 2, ...; a layer of zeros is left out."""
    figure, (axes,) = _figure(8, 4)
    bottom = np.zeros(len(layers[0][1]))
    for number, (label, heights) in enumerate(layer for layer in layers if any(layer[1])):
        colour = ENDS.get(label, COLOURS[number % len(COLOURS)])
        axes.bar(np.arange(len(bottom)), heights, 0.9, bottom=bottom, color=colour, label=label, linewidth=0)
        bottom = bottom + np.asarray(heights, float)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _name(axes, title, x, y)
    if axes.containers:  # under the axis: bars may be anywhere above it
        axes.legend(frameon=False, fontsize=9, ncols=6, labelcolor=INK, loc="upper left", bbox_to_anchor=(-0.02, -0.14))
    return figure


def histogram(values: Sequence[float], title: str, x: str, y: str, *, at: float | None = None) -> Figure:
    """A histogram of values, with a line at `at`."""
    figure, (axes,) = _figure(6, 3.6)
    axes.hist(values, bins=24, color=BLUE, edgecolor="white", linewidth=0.6)
    if at is not None:
        axes.axvline(at, color=INK, linewidth=1)
    if _is_share(x):
        axes.xaxis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    _name(axes, title, x, y)
    return figure


def png(figure: Figure) -> bytes:
    """A figure as the bytes of a PNG; without a date, so the same figure gives the same bytes."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=150, metadata={"Software": None})
    return buffer.getvalue()


ALL: dict[str, Callable[[Outcome], Figure]] = {
    "learning": learning,
    "devices": devices,
    "participation": participation,
    "work": work,
    "duration": duration,
    "data": data,
}
"""The pictures of one simulation, by the name of their file."""
