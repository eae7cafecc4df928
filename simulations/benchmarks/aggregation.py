"""FedAvg of many updates: Flower's `aggregate_train` of all replies at once, against Umbel's vetting and folding one by one.

Loading serialized bytes into memory is not timed. Flower gets all replies at once, with ArrayRecords that hold the bytes.
Umbel reads one safetensors blob after the other and computes its digest. It sums the squares of each piece while the piece
is in the processor's cache; this sum is timed, like the rest of the vetting. Each half is a process of its own, so that its
peak memory can be measured. The halves take turns `--turns` times, and the fastest turn of each counts, because the speed of
a machine changes over time.

`umbel_extra_mb` is the peak memory above the memory before the first update, reading included. `stream_fraction` is the
rate at which Umbel vets and folds bytes, divided by the rate at which one thread adds arrays of the same size with
`numpy.add`. `umbel_look_s` is the timed part that happens while reading, and `umbel_read_s` the rest of the reading.
`umbel_cpu_s` and `flower_cpu_s` are seconds summed over all cores.
"""

import argparse
import json
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from umbel.messages import Blob
from umbel.tensors import Tensors, WeightSpec, dump, load
from umbel.updates import Pipeline

CNN: dict[str, tuple[int, ...]] = {
    "conv2d/kernel": (5, 5, 1, 32),
    "conv2d/bias": (32,),
    "conv2d_1/kernel": (5, 5, 32, 64),
    "conv2d_1/bias": (64,),
    "dense/kernel": (3136, 512),
    "dense/bias": (512,),
    "dense_1/kernel": (512, 10),
    "dense_1/bias": (10,),
}
"""The 1,663,370 weights of the `mnist-cnn` of umbel_sim.reference_models (McMahan et al., arXiv 1602.05629)."""

SMALL: dict[str, tuple[int, ...]] = {"dense/kernel": (64, 32), "dense/bias": (32,)}
MODELS = {"mnist-cnn": CNN, "small": SMALL}
HALVES = ("umbel", "flower", "stream")


def trained(number: int, base: Tensors, noise: np.ndarray) -> Tensors:
    """The trained weights of device `number`: the base plus normal noise of standard deviation 0.01."""
    position, tensors = number * 7919 % (noise.size // 2), {}
    for name, weight in base.items():
        tensors[name] = weight + noise[position : position + weight.size].reshape(weight.shape)
        position += weight.size
    return tensors


def update(number: int, base: Tensors, noise: np.ndarray) -> Tensors:
    """The update of device `number`: its trained weights minus the base, as float32."""
    return {name: weight - base[name] for name, weight in trained(number, base, noise).items()}


def noise_for(shapes: dict[str, tuple[int, ...]]) -> np.ndarray:
    """Normal numbers, enough for updates that differ from each other."""
    size = 2 * sum(math.prod(shape) for shape in shapes.values()) + 1
    return np.random.default_rng(0).normal(size=size, scale=0.01).astype(np.float32)


def examples(number: int) -> float:
    """The number of examples of device `number`."""
    return float(20 + number * 37 % 600)


def base_of(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    """The weights from which all devices start."""
    return {name: np.full(shape, 0.1, np.float32) for name, shape in shapes.items()}


class Stopwatch:
    """Sums the seconds spent inside its `with` blocks: elapsed time, and processor time of all cores."""

    def __init__(self) -> None:
        self.seconds = self.cpu = 0.0

    def __enter__(self) -> None:
        self._began = time.perf_counter(), time.process_time()

    def __exit__(self, *_: object) -> None:
        self.seconds += time.perf_counter() - self._began[0]
        self.cpu += time.process_time() - self._began[1]


def looking(sums: Callable[..., float], seconds: list[float]) -> Callable[..., float]:
    """`sums`, with the duration of each call appended to `seconds`; it uses one thread."""

    def timed(*given: object) -> float:
        began = time.perf_counter()
        found = sums(*given)
        seconds.append(time.perf_counter() - began)
        return found

    return timed


def umbel_half(shapes: dict[str, tuple[int, ...]], updates: int, folder: Path) -> dict[str, float]:
    """Umbel's half: read, vet and fold every blob, and finish the round."""
    from umbel_server.aggregation import Buffers, Vetting, from_blob, passes
    from umbel_server.flower import internals
    from umbel_server.flower.strategies import make_strategy
    from umbel_server.runs.aggregator import aggregator_of
    from umbel_server.storage.blobs import Blobs

    internals.set_identity()
    blobs, digests = Blobs((folder / "blobs").as_uri()), json.loads((folder / "digests.json").read_text())
    pipeline = Pipeline([WeightSpec(name, shape) for name, shape in shapes.items()])
    aggregator = aggregator_of(make_strategy("fedavg", {}, 0.1), pipeline)
    vetting, base = Vetting(pipeline, max_norm=1e3, norm_multiple=10.0), base_of(shapes)
    memory, clock, reading, buffers = rss_mb("VmRSS"), Stopwatch(), Stopwatch(), Buffers()
    looks: list[float] = []
    passes.squares = looking(passes.squares, looks)  # while an update is read
    for number in range(updates):
        with reading:
            update = from_blob(pipeline, blobs, Blob(digests[number], blobs.size(digests[number])), buffers)
        with clock:
            vetting.accept(f"device {number}", update.delta, examples(number), squares=update.squares)
            aggregator.fold(str(number), update, examples(number), {"loss": 1.0})
            del update
    with clock:
        weights, _ = aggregator.finish(1, base)
    (folder / "umbel.result").write_bytes(dump(weights))
    looked = sum(looks)
    return {
        "s": clock.seconds + looked,
        "cpu_s": clock.cpu + looked,
        "look_s": looked,
        "read_s": reading.seconds - looked,
        "extra_mb": rss_mb("VmHWM") - memory,
    }


def flower_half(shapes: dict[str, tuple[int, ...]], updates: int, folder: Path) -> dict[str, float]:
    """Flower's half: aggregate replies that hold whole weights (base + delta)."""
    from umbel_server.flower import internals
    from umbel_server.flower import messages as flower_messages
    from umbel_server.flower.strategies import make_strategy

    internals.set_identity()
    base, noise, replies = base_of(shapes), noise_for(shapes), []
    memory = rss_mb("VmRSS")
    for number in range(updates):
        weights = trained(number, base, noise)
        replies.append(flower_messages.own_reply(weights, {"num-examples": examples(number), "loss": 1.0}))
    strategy = make_strategy("fedavg", {}, 0.1)
    clock = Stopwatch()
    with clock:
        arrays, _ = strategy.aggregate_train(1, replies)
    if arrays is None:
        raise RuntimeError("Flower aggregated nothing")
    (folder / "flower.result").write_bytes(dump(flower_messages.tensors_of(arrays)))
    return {"s": clock.seconds, "cpu_s": clock.cpu, "extra_mb": rss_mb("VmHWM") - memory}


def stream_half(shapes: dict[str, tuple[int, ...]], updates: int, folder: Path) -> dict[str, float]:
    """The yardstick: add arrays of the model's size, 400 MB of them, again and again."""
    size = sum(math.prod(shape) for shape in shapes.values())
    rows = max(2, min(100_000_000 // size, 10_000))
    arrays, total = np.ones((rows, size), np.float32), np.zeros(size, np.float32)
    clock = Stopwatch()
    with clock:
        for number in range(updates):
            np.add(total, arrays[number % rows], out=total)
    return {"s": clock.seconds}


def rss_mb(which: str) -> float:
    """This process's resident memory, now (VmRSS) or at its largest (VmHWM), in MB (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{which}:")) / 1024


WORK: dict[str, Callable[[dict[str, tuple[int, ...]], int, Path], dict[str, float]]] = {
    "umbel": umbel_half,
    "flower": flower_half,
    "stream": stream_half,
}


def in_a_process(half: str, model: str, updates: int, folder: Path) -> dict[str, float]:
    """Run one half in a process of its own; raises CalledProcessError when it fails."""
    done = subprocess.run(
        [sys.executable, __file__, "--work", half, str(folder), "--model", model, "--updates", str(updates)],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def largest_difference(folder: Path) -> float:
    """The largest difference of the two results, in units of the last place of float32 at 0.1."""
    ours, theirs = (load((folder / f"{half}.result").read_bytes()) for half in ("umbel", "flower"))
    return max(float(np.abs(ours[name] - theirs[name]).max()) for name in ours) / float(np.spacing(np.float32(0.1)))


def main() -> int:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, help="write the row to this file")
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--model", choices=MODELS, default="mnist-cnn")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    shapes, updates = MODELS[arguments.model], arguments.updates
    if arguments.work:
        half, folder = arguments.work
        print("\n" + json.dumps(WORK[half](shapes, updates, Path(folder))))
        return 0
    from umbel_server.storage.blobs import Blobs

    console, noise, base = Console(), noise_for(shapes), base_of(shapes)
    with tempfile.TemporaryDirectory(prefix="umbel-fold-") as name:
        folder = Path(name)
        with console.status(f"writing {updates} updates"):
            blobs = Blobs((folder / "blobs").as_uri())
            digests = [blobs.put(dump(update(number, base, noise))).sha256 for number in range(updates)]
            (folder / "digests.json").write_text(json.dumps(digests))
        turns: dict[str, list[dict[str, float]]] = {half: [] for half in HALVES}
        for turn in range(arguments.turns):
            for half in HALVES:
                with console.status(f"turn {turn + 1} of {arguments.turns}, {half}: {updates} updates"):
                    turns[half].append(in_a_process(half, arguments.model, updates, folder))
        found = {half: min(own, key=lambda turn: turn["s"]) for half, own in turns.items()}
        difference = largest_difference(folder)
    row = {
        "model": arguments.model,
        "updates": updates,
        "flower_s": round(found["flower"]["s"], 3),
        "umbel_s": round(found["umbel"]["s"], 3),
        "ratio": round(found["flower"]["s"] / found["umbel"]["s"], 2),
        "umbel_ms_per_update": round(found["umbel"]["s"] / updates * 1000, 3),
        "umbel_extra_mb": round(found["umbel"]["extra_mb"], 1),
        "flower_extra_mb": round(found["flower"]["extra_mb"], 1),
        "stream_fraction": round(found["stream"]["s"] / found["umbel"]["s"], 3),
        "umbel_look_s": round(found["umbel"]["look_s"], 3),
        "umbel_read_s": round(found["umbel"]["read_s"], 3),
        "flower_cpu_s": round(found["flower"]["cpu_s"], 3),
        "umbel_cpu_s": round(found["umbel"]["cpu_s"], 3),
        "difference_ulp": round(difference, 2),
    }
    table = Table("measure", "value", title="one round of FedAvg")
    for key, value in row.items():
        table.add_row(key.replace("_", " "), str(value))
    console.print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(row, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
