import msgspec

NOT_DECODED = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""The exceptions that msgspec raises for bytes that it cannot decode; UnicodeDecodeError is for text that is not UTF-8."""


class UmbelError(Exception):
    """An error that a person can act on. Its sentence names what was expected, what came and what to do."""


class TaskError(UmbelError):
    """A task file or task that cannot be used."""


class PlanError(UmbelError):
    """A plan bundle that is damaged, newer than this Umbel, or not signed by the expected key."""


class TensorError(UmbelError):
    """Tensors that do not fit their specification, or bytes that are not tensors."""


class SignatureError(UmbelError):
    """A token or key that does not verify."""


class MessageError(UmbelError):
    """A message that is not well formed, expired, or not meant for its receiver."""


class RuntimeMissing(UmbelError):
    """No LiteRT interpreter is installed."""
