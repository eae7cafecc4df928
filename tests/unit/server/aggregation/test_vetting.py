import numpy as np
import pytest

from umbel import UmbelError
from umbel.tensors import Tensors, WeightSpec
from umbel_server.aggregation.vetting import FEWEST_FOR_A_MEDIAN, Vetting

SPECS = [WeightSpec("kernel", (3, 4)), WeightSpec("bias", (4,))]


def update(size: float = 1.0) -> Tensors:
    return {"kernel": np.full((3, 4), size, np.float32), "bias": np.zeros(4, np.float32)}


def test_a_right_update_gives_the_largest_magnitude_of_each_tensor() -> None:
    assert Vetting(SPECS).vet("phone", update(-2.0), 1) == {"kernel": 2.0, "bias": 0.0}


WRONG: dict[str, tuple[Tensors, str]] = {
    "missing": ({"kernel": update()["kernel"]}, "the update of phone: tensor 'bias' is missing"),
    "extra": ({**update(), "more": np.zeros(1, np.float32)}, "tensor 'more' is not one of"),
    "shape": ({**update(), "bias": np.zeros(5, np.float32)}, r"should be float32\[4\], got float32\[5\]"),
    "dtype": ({**update(), "bias": np.zeros(4, np.int32)}, r"should be float32\[4\], got int32\[4\]"),
    "NaN": ({**update(), "bias": np.float32([0, np.nan, 0, 0])}, "tensor 'bias' holds NaN or infinity"),
    "infinite": ({**update(), "bias": np.float32([0, 0, -np.inf, 0])}, "tensor 'bias' holds NaN or infinity"),
}


@pytest.mark.parametrize("kind", WRONG)
def test_a_wrong_update_is_one_sentence(kind: str) -> None:
    wrong, sentence = WRONG[kind]
    with pytest.raises(UmbelError, match=sentence):
        Vetting(SPECS).vet("phone", wrong, 1)


def test_the_claimed_examples_are_within_what_the_device_reported() -> None:
    vetting = Vetting(SPECS)
    vetting.vet("phone", update(), 30, 30)
    vetting.vet("phone", update(), 30, 0)
    with pytest.raises(UmbelError, match="phone says it has 30 examples, its update claims 31"):
        vetting.vet("phone", update(), 31, 30)
    with pytest.raises(UmbelError, match="at least one example was expected of phone, got 0"):
        vetting.vet("phone", update(), 0, 30)


def test_a_norm_over_the_fixed_bound_is_refused_also_when_its_square_leaves_float32() -> None:
    vetting = Vetting(SPECS, max_norm=10.0)
    vetting.vet("phone", update(2.0), 1)
    with pytest.raises(UmbelError, match=r"has norm 10\.39, at most 10 is allowed"):
        vetting.vet("phone", update(3.0), 1)
    with pytest.raises(UmbelError, match=r"has norm 1\.039e\+31"):
        vetting.vet("phone", update(3e30), 1)


def test_a_norm_far_over_the_rounds_median_is_refused_once_there_is_a_median() -> None:
    vetting = Vetting(SPECS, norm_multiple=10.0)
    vetting.vet("early", update(1e6), 1)  # nothing to compare with yet
    for _ in range(FEWEST_FOR_A_MEDIAN):
        vetting.vet("phone", update(), 1)
    with pytest.raises(UmbelError, match=r"over 10 times the round's median of 3\.464"):
        vetting.vet("phone", update(1e6), 1)
    vetting.clear()
    vetting.vet("phone", update(1e6), 1)
