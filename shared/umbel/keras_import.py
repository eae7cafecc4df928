import importlib
import importlib.util
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from umbel.errors import UmbelError


def import_keras() -> None:
    """Import Keras on TensorFlow's CPU kernels, and suppress the start-up messages of TensorFlow's native code.

    Call it before a task file is loaded, so that the file's own import of Keras prints nothing either. Raises UmbelError
    when Keras or TensorFlow is not installed.
    """
    if "keras" in sys.modules:
        return
    if importlib.util.find_spec("tensorflow") is None or importlib.util.find_spec("keras") is None:
        raise UmbelError("this needs Keras and TensorFlow: pip install 'umbel[keras]'")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    os.environ.setdefault("CUDA_VISIBLE_DEVICES", "-1")
    # TensorFlow chooses these kernels by itself on some processors only. Without them it cannot train a dilated
    # transposed convolution, and a plan's parity would depend on the machine that compiles it.
    os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "1")
    # TensorFlow writes these messages before it reads the log level, so standard error itself is redirected.
    with native_stderr_silenced():
        importlib.import_module("keras")


@contextmanager
def native_stderr_silenced() -> Iterator[None]:
    """Discard what native code writes to standard error in this block.

    The whole process is affected: use it only in the main thread of a command.
    """
    sys.stderr.flush()
    kept, silence = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(silence)
