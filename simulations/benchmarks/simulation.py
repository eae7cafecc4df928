"""The cost of one client's update in a simulation: Umbel's simulator, Flower's on Ray, pfl-research's, and two bare loops.

There are 1,000 virtual users with 50 random MNIST-shaped examples each. In a round 50 of them train one epoch in batches of
10 by SGD with learning rate 0.1, and FedAvg makes the next model. The models are the MLP and the CNN of McMahan et al.
(arXiv 1602.05629). Every measurement is a process of its own, with its children. The engines take turns, because the speed
of a machine changes over time; Flower, which takes minutes, has one turn in the middle. A round is timed from the end of
the round before it, and the first two rounds of a turn only warm up.

`ms` is the median round of all turns divided by the cohort. `min_ms` is the same for the fastest round; engines are compared
by it. `peak_mb` is the largest sampled resident memory of a process and its children. `elsewhere` is the number of cores
that other programs kept busy: do not compare figures from a busy machine.

`pfl` is the better of its settings, which have rows of their own. `flower-ray` keeps its Keras models from one user to
the next; in `flower-ray, new models` every user makes one, as the TensorFlow example of Flower's documentation does.
`umbel` has rows for other numbers of devices, and for a large cohort. Ray, pfl-research and PyTorch are installed from PyPI
into environments in the --venvs folder, and stay there. An engine that cannot be installed is left out, and so are the
comparisons that need it.
"""

import argparse
import json
import os
import signal
import statistics
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from simulators.measuring import Failed, watch
from simulators.venvs import Unavailable, Venv, python_of
from simulators.workload import INPUTS, Case

HERE = Path(__file__).parent / "simulators"
WARM_UP = 2
RAY = Venv("ray", ("ray==2.55.1",), borrow=True)
PFL = Venv("pfl", ("pfl==0.6.0", "torch"))
QUIET = {
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "FLWR_TELEMETRY_ENABLED": "0",
}


@dataclass(frozen=True)
class Engine:
    """A simulator: a script in `simulators` and the environment in which it runs. A `slow` one has only one turn."""

    script: str
    venv: Venv | None = None
    setting: str = ""
    slow: bool = False


ENGINES = {
    "umbel": Engine("umbel_simulator.py"),
    "pfl, 2 processes": Engine("pfl_research.py", PFL, "processes"),
    "keras-loop": Engine("keras_loop.py"),
    "torch-loop": Engine("torch_loop.py", PFL),
    "pfl, 2 threads": Engine("pfl_research.py", PFL, "threads"),
    "flower-ray": Engine("flower_ray.py", RAY, "kept", slow=True),
    "flower-ray, new models": Engine("flower_ray.py", RAY, "new", slow=True),
}
NAMES = ("umbel", "flower-ray", "pfl", "keras-loop", "torch-loop", "scale")
"""The values of --only; `scale` stands for Umbel with other numbers of devices."""

BUSY = 0.3
"""The most cores that other programs may use; figures measured above it should not be compared."""

SCALE = ((100, 50), (10_000, 50), (100_000, 50), (10_000, 1000))
"""Pairs of the number of devices and the size of the cohort."""


@dataclass
class Measured:
    """The measurements of one engine with one model, over all its turns."""

    engine: str
    case: Case
    rounds: list[float] = field(default_factory=list)
    peak_mb: float = 0.0
    elsewhere: float = 0.0
    setting: str = ""

    def row(self) -> dict[str, Any]:
        """The measurements as a row of the result."""
        times = [seconds / self.case.cohort * 1000 for seconds in self.rounds]
        return {
            "engine": self.engine,
            "model": self.case.model,
            "devices": self.case.devices,
            "cohort": self.case.cohort,
            "ms": round(statistics.median(times), 3),
            "min_ms": round(min(times), 3),
            "peak_mb": round(self.peak_mb, 1),
            "setting": self.setting,
            "elsewhere": round(self.elsewhere, 2),
        }


class Turns:
    """Runs engines and collects their measurements. An engine that cannot be installed is not tried again."""

    def __init__(self, console: Console, venvs: Path, limit: float) -> None:
        self._console, self._venvs, self._limit = console, venvs, limit
        self._left_out: set[str] = set()
        self._found: dict[tuple[str, Case], Measured] = {}
        self.failed = False

    def take(self, name: str, case: Case) -> None:
        """Run one turn of an engine."""
        if name in self._left_out:
            return
        what = f"{name}, {case.model}, {case.devices:,} devices, cohort {case.cohort:,}"
        try:
            with self._console.status(what):
                measured = self._measure(name, case)
        except Unavailable as error:
            self._left_out.add(name)
            self._console.print(f"{name} is left out: {error}", soft_wrap=True)
        except Failed as error:
            self.failed = True
            self._console.print(f"{what} failed: {error}", soft_wrap=True, markup=False)
        else:
            ms = min(measured.rounds) / case.cohort * 1000
            self._console.print(f"{what}: {ms:.2f} ms at best, {measured.elsewhere:.2f} cores busy elsewhere")

    def _measure(self, name: str, case: Case) -> Measured:
        engine = ENGINES[name]
        python = sys.executable if engine.venv is None else str(python_of(engine.venv, self._venvs))
        case = Case(case.model, case.devices, case.cohort, case.rounds, engine.setting)
        with tempfile.TemporaryDirectory(prefix="umbel-simulation-", ignore_cleanup_errors=True) as folder:
            answer = Path(folder) / "answer.json"
            command = [python, str(HERE / engine.script), json.dumps(asdict(case)), str(answer)]
            watched = watch(command, os.environ | QUIET, Path(folder) / "log", self._limit)
            told = json.loads(answer.read_bytes())
        measured = self._found.setdefault((name, case), Measured(name, case))
        measured.rounds += told["seconds"][WARM_UP:]
        measured.peak_mb = max(measured.peak_mb, watched.peak_mb)
        measured.elsewhere = max(measured.elsewhere, watched.elsewhere)
        measured.setting = told["setting"]
        return measured

    def rows(self) -> list[dict[str, Any]]:
        """One row for each engine and case, and the better of pfl's settings as `pfl`."""
        rows = [measured.row() for measured in self._found.values()]
        for model in INPUTS:
            settings = [row for row in rows if row["engine"].startswith("pfl") and row["model"] == model]
            if settings:
                rows.append({**min(settings, key=lambda row: row["min_ms"]), "engine": "pfl"})
        return sorted(rows, key=lambda row: (list(INPUTS).index(row["model"]), row["cohort"], row["devices"] != 1000))


@dataclass(frozen=True)
class Bar:
    """A requirement and the figure that was found; `holds` is None when a measurement is missing."""

    text: str
    found: str
    holds: bool | None


def bars(rows: Sequence[dict[str, Any]]) -> list[Bar]:
    """The requirements that Umbel's simulator must meet, checked against `rows`."""

    def row(engine: str, model: str, devices: int = 1000, cohort: int = 50) -> dict[str, Any] | None:
        wanted = {"engine": engine, "model": model, "devices": devices, "cohort": cohort}
        return next((row for row in rows if wanted.items() <= row.items()), None)

    def faster(model: str, other: str, least: float, holds: Callable[[float], bool]) -> Bar:
        ours, theirs = row("umbel", model), row(other, model)
        text = f"{model}: {f'at least {least:g} times' if least > 1 else 'more than'} the throughput of {other}"
        if ours is None or theirs is None:
            return Bar(text, "not measured", None)
        ratio = theirs["min_ms"] / ours["min_ms"]
        return Bar(text, f"{ratio:.2f} ({theirs['ms'] / ours['ms']:.2f} by medians)", holds(ratio))

    found = [
        faster("mlp", "flower-ray", 200, lambda ratio: ratio >= 200),
        faster("mlp", "pfl", 2.5, lambda ratio: ratio >= 2.5),
        faster("mlp", "flower-ray, new models", 200, lambda ratio: ratio >= 200),
        faster("mnist-cnn", "flower-ray", 10, lambda ratio: ratio >= 10),
        faster("mnist-cnn", "flower-ray, new models", 10, lambda ratio: ratio >= 10),
        faster("mnist-cnn", "pfl", 1, lambda ratio: ratio > 1),
    ]
    few, many = row("umbel", "mlp", 100), row("umbel", "mlp", 100_000)
    text = "mlp: with 100,000 devices an update costs at most 1.25 times what it costs with 100"
    if few is None or many is None:
        found.append(Bar(text, "not measured", None))
    else:
        ratio = many["min_ms"] / few["min_ms"]
        found.append(Bar(text, f"{ratio:.2f} ({many['ms'] / few['ms']:.2f} by medians)", ratio <= 1.25))
    large = row("umbel", "mlp", 10_000, 1000)
    text = "mlp: 10,000 devices and a cohort of 1,000 take less than 2,000 MB"
    if large is None:
        found.append(Bar(text, "not measured", None))
    else:
        found.append(Bar(text, f"{large['peak_mb']:.0f} MB", large["peak_mb"] < 2000))
    return found


def wanted(name: str, only: Sequence[str]) -> bool:
    """Whether the engine `name` of ENGINES is among the values of --only."""
    return name.split(",", maxsplit=1)[0] in only


def main() -> int:
    """Measure, print tables and whether the bars hold; the exit code is 1 when an engine that is there fails."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the rows to this file")
    parser.add_argument(
        "--only", nargs="+", choices=NAMES, default=list(NAMES), metavar="ENGINE", help=", ".join(NAMES)
    )
    parser.add_argument("--models", nargs="+", choices=list(INPUTS), default=list(INPUTS))
    parser.add_argument("--devices", type=int, default=1000)
    parser.add_argument("--cohort", type=int, default=50)
    parser.add_argument("--rounds", type=int, default=10, help="rounds in a turn, after the two that warm up")
    parser.add_argument("--turns", type=int, default=2)
    parser.add_argument("--limit", type=float, default=1200.0, help="the most seconds that a turn may take")
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "umbel" / "simulators"
    parser.add_argument("--venvs", type=Path, default=cache, help="where environments are made and kept (%(default)s)")
    arguments = parser.parse_args()
    if min(arguments.rounds, arguments.turns, arguments.cohort) < 1 or arguments.devices < arguments.cohort:
        parser.error("--rounds, --turns and --cohort should be at least 1, and --devices at least the cohort")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # so that the children end too
    console = Console()
    if not console.is_terminal:
        console = Console(width=140)
    turns = Turns(console, arguments.venvs.resolve(), arguments.limit)
    rounds = WARM_UP + arguments.rounds
    for turn in range(arguments.turns):
        for model in arguments.models:
            case = Case(model, arguments.devices, arguments.cohort, rounds)
            for name, engine in ENGINES.items():
                if wanted(name, arguments.only) and (not engine.slow or turn == (arguments.turns - 1) // 2):
                    turns.take(name, case)
        if "scale" in arguments.only:
            for devices, cohort in SCALE:
                turns.take("umbel", Case("mlp", devices, cohort, rounds))
    rows = turns.rows()
    if rows:
        table = Table(*(name.replace("_", " ") for name in rows[0]), title="one client's update")
        for row in rows:
            table.add_row(*(f"{value:,}" if isinstance(value, int) else str(value) for value in row.values()))
        console.print(table)
    for bar in bars(rows):
        verdict = {True: "holds", False: "does not hold", None: "unknown"}[bar.holds]
        console.print(f"{bar.text}: {bar.found}: {verdict}", soft_wrap=True)
    if any(row["elsewhere"] > BUSY for row in rows):
        console.print(
            f"Other programs kept more than {BUSY} cores busy: measure again on a machine with nothing else to do."
        )
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")
    return int(turns.failed or not rows)


if __name__ == "__main__":
    sys.exit(main())
