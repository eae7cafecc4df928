"""A disk that can be full: a small tmpfs where root may mount one, else a limit on what a process may write."""

import os
import resource
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

SIZE_MB = 96


class SmallDisk:
    """A small file system mounted at `folder`; `fill` leaves not a byte of it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True)
        self._mount("mount", "-t", "tmpfs", "-o", f"size={SIZE_MB}m,mode=700", "tmpfs", str(folder))

    def fill(self) -> None:
        """Take every byte that is left."""
        with (self.folder / "filler").open("wb", buffering=0) as filler:
            for piece in (1 << 20, 1 << 12):
                try:
                    while filler.write(bytes(piece)) == piece:
                        pass
                except OSError:
                    continue

    def free(self) -> None:
        """Give back what `fill` took."""
        (self.folder / "filler").unlink()

    def unmount(self) -> None:
        """Remove the disk; what was on it stays in the folder."""
        copy = self.folder.with_name(f"{self.folder.name}.copy")
        shutil.copytree(self.folder, copy)
        self._mount("umount", str(self.folder))
        self.folder.rmdir()
        copy.rename(self.folder)

    def _mount(self, *command: str) -> None:
        subprocess.run(command, check=True, capture_output=True)


def can_mount(folder: Path) -> bool:
    """Whether this process may mount a small disk."""
    if os.geteuid() != 0:
        return False
    try:
        SmallDisk(folder).unmount()
        folder.rmdir()
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def limit_writing(processes: Iterable[int], limited: bool) -> None:
    """Let processes extend no file (they meet EFBIG instead of ENOSPC), or any."""
    for process in processes:
        _, hard = resource.prlimit(process, resource.RLIMIT_FSIZE)
        resource.prlimit(process, resource.RLIMIT_FSIZE, (0 if limited else hard, hard))
