"""The cost of a signed and of a sealed message: milliseconds of one thread for a command that carries a 4 kB model.

With `--module`, `--token-label` and `--pin-file` it also times a signature by a key on that PKCS#11 token. It makes a key
called `umbel-benchmark` there and leaves it there.
"""

import argparse
import json
import statistics
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from rich.console import Console

from umbel import messages, sealing, signing
from umbel.errors import UmbelError
from umbel.messages import Blob, Command, Infer
from umbel_edge.config import KeyConfig

REPEATS = 300
KEY_NAME = "umbel-benchmark"


def milliseconds(call: Callable[[], object]) -> float:
    """The median duration of `call` in milliseconds."""
    took = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        call()
        took.append(time.perf_counter() - began)
    return 1000 * statistics.median(took)


def measure(on_token: KeyConfig | None) -> dict[str, float]:
    """Milliseconds by operation; raises UmbelError when the token cannot be used."""
    key, receiver = signing.generate_key(), signing.generate_key()
    public, sealed_for = signing.import_public(signing.public_key(key)), signing.public_key(receiver)
    model = Blob.of(np.random.default_rng(0).bytes(4096))
    now = time.time()
    command = Command("0" * 16, "home", "phone", now, now + 60, Infer(model), sequence=1)
    token = messages.encode(command, key)
    sealed = sealing.seal(token, signing.import_public(sealed_for))
    rows = {
        "sign": milliseconds(lambda: messages.encode(command, key)),
        "verify": milliseconds(lambda: messages.decode_command(token, public)),
        "seal": milliseconds(lambda: sealing.seal(token, signing.import_public(sealed_for))),
        "unseal": milliseconds(lambda: sealing.unseal(sealed, receiver)),
        "sealed bytes / bytes": len(sealed) / len(token),
    }
    if on_token is not None:
        from umbel_edge.identity.token_keys import TokenStore

        store = TokenStore(on_token, threading.Event(), patient=False)
        held = store.load() or store.create()
        rows["sign on the token"] = milliseconds(lambda: messages.encode(command, held))
        store.close()
    return rows


def main() -> int:
    """Measure, print, and write JSON with `--json`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--module", type=Path, help="a PKCS#11 library")
    parser.add_argument("--token-label", default="")
    parser.add_argument("--pin-file", type=Path)
    given = parser.parse_args()
    console = Console(highlight=False)
    try:
        on_token = None
        if given.module is not None:
            on_token = KeyConfig("pkcs11", given.module, given.token_label, KEY_NAME, pin_file=given.pin_file)
            on_token.check()
        rows = measure(on_token)
    except UmbelError as error:
        console.print(f"signing.py: {error}")
        return 1
    for what, value in rows.items():
        console.print(f"{what:22} {value:6.2f}{'' if '/' in what else ' ms'}")
    if given.json is not None:
        given.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
