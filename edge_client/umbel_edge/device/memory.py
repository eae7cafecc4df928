"""Memory that an idle agent gives back to the system: free pages of the heap, and code that ran once."""

import ctypes
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

_CODE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-xp \S+ \S+ [1-9]\d*\s+/")
"""The first line of a mapping in /proc/self/smaps: a file's code, which nobody can write to."""
_MADV_DONTNEED = 4


def release_memory() -> None:
    """Give back what the process does not use now; does nothing where that is not known to work.

    A library's code is mapped while it is loaded and stays mapped, though most of it runs once. Code that is given back is
    mapped again when it runs, from the page cache; see madvise(2). glibc keeps freed memory; see malloc_trim(3).
    """
    if sys.platform != "linux":
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):  # musl and Android have none
        libc.malloc_trim(ctypes.c_size_t(0))
    try:
        smaps = Path("/proc/self/smaps").read_text()
    except OSError:
        return  # a hardened kernel shows it to nobody
    for start, end in unchanged_code(smaps.splitlines()):
        libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _MADV_DONTNEED)


def unchanged_code(smaps: Iterable[str]) -> Iterator[tuple[int, int]]:
    """Begin and end of code that is as it is in its file: what a loader has changed there would be lost."""
    found: tuple[int, int] | None = None
    for line in smaps:
        if (match := _CODE.match(line)) is not None:
            found = int(match[1], 16), int(match[2], 16)
        elif found is not None and line.startswith("Anonymous:"):
            if line.split()[1] == "0":
                yield found
            found = None
