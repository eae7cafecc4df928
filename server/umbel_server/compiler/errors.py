"""The error that most modules of this package raise."""

from umbel.errors import UmbelError


class CompileError(UmbelError):
    """A task cannot be compiled. The message names the layer or op, the reason, and what to use instead."""
