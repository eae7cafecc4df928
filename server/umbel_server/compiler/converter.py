"""LiteRT's converter, called directly instead of through `tf.lite.TFLiteConverter`.

That class loads the SavedModel twice in Python, and unpacks and packs the file three times. For a large train step this
takes longer than the conversion itself.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tensorflow as tf
from tensorflow.lite.python.convert import convert_saved_model

from umbel_server.compiler.errors import CompileError


def convert(folder: Path, signatures: Sequence[str], name: str, **flags: Any) -> bytes:
    """Convert the `signatures` of the SavedModel in `folder` to a TFLite file of built-in ops only.

    `name` is the task's name, for errors. `flags` are passed to tensorflow.lite.python.convert.build_conversion_flags.
    Raises CompileError with the first line of the converter's error.
    """
    try:
        return bytes(
            convert_saved_model(
                saved_model_dir=str(folder),
                saved_model_version=1,
                saved_model_tags={tf.saved_model.SERVING},
                saved_model_exported_names=list(signatures),
                target_ops={tf.lite.OpsSet.TFLITE_BUILTINS},
                enable_composite_direct_lowering=True,
                **flags,
            )
        )
    except Exception as error:
        first = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise CompileError(
            f"task {name}: LiteRT's converter refused {', '.join(signatures)} ({first[:300]}); please report the model"
        ) from error
