"""A network of its own for some devices: a Linux network namespace and one cable to it that can be pulled."""

import os
import subprocess
from itertools import count

_numbers = count(os.getpid() % 16_000)


class Namespace:
    """A namespace whose only way out is a veth pair; `address` is this machine's end of it."""

    def __init__(self) -> None:
        number = next(_numbers) % 16_000
        self.name = f"umbel-{number}"
        self._cable, far = f"umbel{number}a", f"umbel{number}b"
        third, fourth = divmod(number * 4, 256)
        self.address = f"10.213.{third % 256}.{fourth + 1}"
        _ip("netns", "add", self.name)
        try:
            _ip("link", "add", self._cable, "type", "veth", "peer", "name", far, "netns", self.name)
            _ip("addr", "add", f"{self.address}/30", "dev", self._cable)
            _ip("link", "set", self._cable, "up")
            _ip("-n", self.name, "addr", "add", f"10.213.{third % 256}.{fourth + 2}/30", "dev", far)
            _ip("-n", self.name, "link", "set", far, "up")
            _ip("-n", self.name, "link", "set", "lo", "up")
        except subprocess.CalledProcessError:
            self.remove()
            raise

    @property
    def prefix(self) -> tuple[str, ...]:
        """What to put before a command so that it runs in the namespace, in the process that was started."""
        return ("ip", "netns", "exec", self.name)

    def pull(self) -> None:
        """Pull the cable: packets vanish, nobody is told."""
        _ip("link", "set", self._cable, "down")

    def plug(self) -> None:
        """Put the cable back."""
        _ip("link", "set", self._cable, "up")

    def remove(self) -> None:
        """Remove the namespace and, with it, the cable."""
        _ip("netns", "del", self.name)


def can_make_namespaces() -> bool:
    """Whether this process may."""
    if os.geteuid() != 0:
        return False
    try:
        namespace = Namespace()
        try:
            subprocess.run((*namespace.prefix, "true"), check=True, capture_output=True)
        finally:
            namespace.remove()
    except (OSError, subprocess.CalledProcessError):
        return False
    return True


def _ip(*arguments: str) -> None:
    subprocess.run(("ip", *arguments), check=True, capture_output=True)
