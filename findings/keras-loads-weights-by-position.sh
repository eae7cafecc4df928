#!/usr/bin/env bash
# Keras gives a layer the weights of another layer when a weights file has more layers than the model.
#
# Version:   keras 3.15.1 with JAX 0.10.2 on CPU
# Behaviour: a model with the layers encoder, adapter and head is saved as model.weights.h5. A model with encoder and head
#            loads that file without an error: its head has the adapter's weights. `load_weights` goes by the layers' kind and
#            place, and names count for nothing; what is left over in the file is not mentioned.
# Expected:  the head's weights, or a refusal: the file knows both names.
# Output:    head loaded the head's weights: False
#            head loaded the adapter's weights: True
# Way out:   compare the variables' paths before loading.
# Exit code: 0 while the behaviour is there, 1 when it has changed, 2 when the packages could not be installed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check keras==3.15.1 jax==0.10.2 || exit 2
KERAS_BACKEND=jax KERAS_HOME="$folder" "$folder/venv/bin/python" -W ignore - "$folder" <<'EOF'
import sys
from pathlib import Path

import keras
import numpy as np


def network(*names):
    tensor = given = keras.Input((4,))
    for name in names:
        tensor = keras.layers.Dense(4, name=name)(tensor)
    return keras.Model(given, tensor)


def kernel(model, name):
    return model.get_layer(name).get_weights()[0]


path = Path(sys.argv[1], "model.weights.h5")
saved = network("encoder", "adapter", "head")
saved.save_weights(path)
loaded = network("encoder", "head")
loaded.load_weights(path)
is_head, is_adapter = (bool(np.array_equal(kernel(loaded, "head"), kernel(saved, name))) for name in ("head", "adapter"))
print("head loaded the head's weights:", is_head)
print("head loaded the adapter's weights:", is_adapter)
sys.exit(is_head or not is_adapter)
EOF
