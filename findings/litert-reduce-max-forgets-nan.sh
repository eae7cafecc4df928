#!/usr/bin/env bash
# REDUCE_MAX and REDUCE_MIN of LiteRT forget a NaN, and everything before it.
#
# Version:   ai-edge-litert 2.3.0; the file is converted by tensorflow-cpu 2.21.0 (1.3 GB in the temporary folder)
# Behaviour: TensorFlow's maximum of values of which one is NaN is NaN. In the converted file, which holds REDUCE_MAX alone, it is
#            the maximum of the values that follow the last NaN: [5, NaN, 1, 2] gives 2. A check such as "all losses are below
#            10" passes on the device with a loss of 50 in front of a NaN.
# Expected:  NaN; or 5, as an operation that skips NaN would give.
# Output:    [5, NaN, 1, 2]: TensorFlow nan, LiteRT 2.0
#            [1, 2, 5, NaN]: TensorFlow nan, LiteRT nan
# Way out:   look for NaN by other means (x != x) before a maximum.
# Exit code: 0 while the behaviour is there, 1 when it has changed, 2 when the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-compile \
    ai-edge-litert==2.3.0 tensorflow-cpu==2.21.0 keras==3.15.1 numpy==2.4.6 h5py==3.14.0 || exit 2
TF_CPP_MIN_LOG_LEVEL=3 CUDA_VISIBLE_DEVICES=-1 "$folder/venv/bin/python" - 2>/dev/null <<'EOF'
import sys

import numpy as np
import tensorflow as tf
from ai_edge_litert.interpreter import Interpreter


@tf.function(input_signature=[tf.TensorSpec((4,), tf.float32)])
def largest(values):
    return tf.reduce_max(values)


model = tf.lite.TFLiteConverter.from_concrete_functions([largest.get_concrete_function()]).convert()
interpreter = Interpreter(model_content=model)
interpreter.allocate_tensors()


def on_litert(values):
    interpreter.set_tensor(interpreter.get_input_details()[0]["index"], values)
    interpreter.invoke()
    return float(interpreter.get_tensor(interpreter.get_output_details()[0]["index"]))


found = []
for row in ([5, np.nan, 1, 2], [1, 2, 5, np.nan]):
    values = np.float32(row)
    found.append((float(largest(values)), on_litert(values)))
    shown = ", ".join("NaN" if np.isnan(value) else f"{value:g}" for value in row)
    print(f"[{shown}]: TensorFlow {found[-1][0]}, LiteRT {found[-1][1]}")
sys.exit(not (np.isnan([on_tensorflow for on_tensorflow, _ in found]).all() and found[0][1] == 2 and np.isnan(found[1][1])))
EOF
