"""`make fuzz`: every parser of bytes from outside under atheris (libFuzzer), for `--minutes` in all.

Each runs in a process of its own that is ended by a crash, an input of over a second, or memory beyond four times the largest
input. What was found of interest stays in `--corpus` and is where the next run begins; a failing input is written there too.
"""

import argparse
import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import IO, NoReturn

import atheris

with atheris.instrument_imports(include=["umbel", "umbel_edge", "umbel_server.aggregation", "umbel_sim.virtual"]):
    from tests.security.parsers import PARSERS, Parser, tried
    from umbel.tensors import digest

LARGEST = 1 << 20
"""Bytes of an input."""
OWN_MB = 600
"""Memory of a process that has imported everything, before it parses."""


def fuzz(parser: Parser, folder: Path, options: list[str], said: IO[bytes]) -> NoReturn:
    """For a process of its own, which libFuzzer ends; an input that fails is written into `folder`."""
    os.dup2(said.fileno(), 2)

    def try_one(data: bytes) -> None:
        try:
            tried(parser, data)
        except Exception:
            # libFuzzer's own way to the end takes longer, and its timer may be faster.
            (folder / f"failing-{digest(data)[:16]}").write_bytes(data)
            traceback.print_exc()
            sys.stderr.flush()
            os._exit(77)

    atheris.Setup([sys.argv[0], *options, f"-artifact_prefix={folder}/failing-", str(folder)], try_one)
    atheris.Fuzz()
    os._exit(0)


def main() -> int:
    """Fuzz one parser after the other; the exit code is 1 when one failed."""
    asked = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    asked.add_argument("--minutes", type=float, default=10.0)
    asked.add_argument("--corpus", type=Path, default=Path(".fuzz"))
    asked.add_argument("--only", choices=PARSERS, help="this parser alone")
    given = asked.parse_args()
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
        ]
        with tempfile.TemporaryFile() as said:
            # A fork: what is fuzzed was imported, and instrumented, once for all.
            if (child := os.fork()) == 0:
                fuzz(PARSERS[name], folder, options, said)
            code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
            said.seek(0)
            text = said.read().decode(errors="replace")
        last = [line for line in text.splitlines() if line.startswith(("Done ", "stat::"))]
        print(f"{name}: {last[-1] if last else f'failed, exit code {code}'}", flush=True)
        if code:
            failed.append(name)
            print(text[-3000:], flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
