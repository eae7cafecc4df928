"""Joining a Ray where there is none: no Ray is started here."""

import socket

import pytest

from umbel.errors import UmbelError
from umbel_sim.engines.ray_cluster import join


def test_a_port_where_nobody_is_and_one_that_stays_silent_are_given_up_in_time() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(UmbelError, match=f"no Ray answers at {address} within 2 seconds; ray start --head"):
            join(address, 1, seconds=2.0)
    with pytest.raises(UmbelError, match=rf"no Ray answers at {address} \(.*refused\); ray start --head"):
        join(address, 1, seconds=2.0)
