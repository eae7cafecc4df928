"""The error of a compilation, in a module of its own: it is raised in most modules of this package."""

from umbel.errors import UmbelError


class CompileError(UmbelError):
    """A task cannot be compiled: names the layer or op, the reason, and what to use instead."""
