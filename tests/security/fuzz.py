"""`make fuzz`: every parser of bytes from outside under atheris (libFuzzer), for `--minutes` in all.

Each runs in a process of its own that is ended by a crash, an input of over a second, or memory beyond four times the largest
input. What was found of interest stays in `--corpus` and is where the next run begins; a failing input is written there too.
"""

import argparse
import subprocess
import sys
from pathlib import Path

LARGEST = 1 << 20
"""Bytes of an input."""
OWN_MB = 600
"""Memory of a process that has imported everything, before it parses."""


def fuzz(name: str) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["umbel", "umbel_edge", "umbel_server.aggregation", "umbel_sim.virtual"]):
        from tests.security.parsers import PARSERS, tried
    parser = PARSERS[name]
    atheris.Setup([sys.argv[0], *sys.argv[3:]], lambda data: tried(parser, data))
    atheris.Fuzz()


def main() -> int:
    """Fuzz one parser after the other; the exit code is 1 when one failed."""
    from tests.security.parsers import PARSERS

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--corpus", type=Path, default=Path(".fuzz"))
    parser.add_argument("--only", choices=PARSERS, help="this parser alone")
    given = parser.parse_args()
    names = [given.only] if given.only else list(PARSERS)
    failed = []
    for name in names:
        folder = given.corpus / name.replace(" ", "-").replace("'", "")
        folder.mkdir(parents=True, exist_ok=True)
        for number, seed in enumerate(PARSERS[name].seeds):
            if len(seed) <= LARGEST:
                (folder / f"seed-{number}").write_bytes(seed)
        options = [
            f"-max_total_time={max(1, round(given.minutes * 60 / len(names)))}",
            f"-max_len={LARGEST}",
            "-timeout=1",
            f"-rss_limit_mb={OWN_MB + 4 * LARGEST // 1_000_000}",
            f"-artifact_prefix={folder}/failing-",
        ]
        command = [sys.executable, "-m", "tests.security.fuzz", "--parse", name, *options, str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        last = [line for line in done.stderr.splitlines() if line.startswith(("Done ", "stat::"))]
        print(f"{name}: {last[-1] if last else f'failed, exit code {done.returncode}'}", flush=True)
        if done.returncode:
            failed.append(name)
            print(done.stderr[-3000:], flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    if sys.argv[1:2] == ["--parse"]:
        fuzz(sys.argv[2])
    sys.exit(main())
