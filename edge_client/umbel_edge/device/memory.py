"""Memory that an idle agent gives back to the system: free pages of the heap, and code that ran once."""

import ctypes
import re
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

_CODE = re.compile(r"([0-9a-f]+)-([0-9a-f]+) r-xp \S+ \S+ [1-9]\d*\s+/")
"""The first line of an entry in /proc/self/smaps for code that is mapped from a file and cannot be written to."""
_MADV_DONTNEED = 4


def release_memory() -> None:
    """Give memory that the process does not use now back to the system; does nothing on systems other than Linux.

    The code of a library stays in memory after it is loaded, though most of it runs only once. Code that is given back is
    read again from the page cache when it runs; see madvise(2). glibc keeps freed memory until it is told to give it back;
    see malloc_trim(3).
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
    """Begin and end of mapped code that equals its file. Code that a loader has changed must stay: it would be lost."""
    found: tuple[int, int] | None = None
    for line in smaps:
        if (match := _CODE.match(line)) is not None:
            found = int(match[1], 16), int(match[2], 16)
        elif found is not None and line.startswith("Anonymous:"):
            if line.split()[1] == "0":
                yield found
            found = None
