"""What joining a Ray says when there is none: no Ray is started here."""

import sys

import pytest

from umbel.errors import UmbelError
from umbel_sim.engines.choice import make_engine
from umbel_sim.engines.ray_cluster import join


@pytest.mark.parametrize("address", ["", "nowhere", "ray://head:10001", ":6379", "head:port"])
def test_what_is_no_address_is_refused_with_what_would_be(address: str) -> None:
    with pytest.raises(UmbelError, match="a Ray's address is local, auto or host:port, got"):
        join(address, 1)


def test_a_machine_without_ray_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UmbelError, match=r"not installed; pip install 'umbel\[ray\]'"):
        join("local", 1)


def test_an_address_belongs_to_ray() -> None:
    with pytest.raises(UmbelError, match="is for Ray only; add --engine ray"):
        make_engine("litert", None, None, None, 1, 1, lambda text: None, "auto")  # type: ignore[arg-type]
