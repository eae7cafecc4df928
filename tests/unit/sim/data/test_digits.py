"""The digits that come with Umbel are those that scikit-learn has."""

import hashlib

import numpy as np

from umbel_sim.digits import load_digits


def test_the_digits_are_those_of_scikit_learn() -> None:
    _, digits = load_digits(1.0, np.random.default_rng(0))
    assert digits.x.shape == (1797, 8, 8, 1)
    unshuffled = digits.rows(np.argsort(np.random.default_rng(0).permutation(len(digits.x))))
    # of scikit-learn 1.9.1: (images / 16).astype("float32"), then target.astype("int32")
    expected = "cf7e26e57b05ca0df6c8c74907284c3304259880cb7ebc523919b068a1ba6454"
    assert hashlib.sha256(unshuffled.x.tobytes() + unshuffled.y.tobytes()).hexdigest() == expected
