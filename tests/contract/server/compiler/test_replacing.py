"""What is replaced in Keras comes back as it was, whatever happens within."""

import types

import pytest

from umbel_server.compiler.replacing import replacing


class Base:
    @staticmethod
    def double(x: int) -> int:
        return 2 * x


class Derived(Base):
    @classmethod
    def name(cls) -> str:
        return cls.__name__


def test_attributes_are_replaced_within_the_block_alone() -> None:
    module = types.ModuleType("module")
    vars(module).update(add=1, keep=2)
    within: list[tuple[int, int]] = []

    def fail() -> None:
        with replacing(module, add=10):
            within.append((vars(module)["add"], vars(module)["keep"]))
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert within == [(10, 2)]
    assert (vars(module)["add"], vars(module)["keep"]) == (1, 2)


def test_what_a_class_inherits_it_inherits_again_and_its_own_keeps_its_kind() -> None:
    with replacing(Derived, double=staticmethod(lambda x: 3 * x), name=classmethod(lambda cls: "other")):
        assert (Derived.double(5), Base.double(5), Derived.name()) == (15, 10, "other")
    assert "double" not in vars(Derived)
    assert isinstance(vars(Derived)["name"], classmethod)
    assert (Derived.double(5), Derived.name()) == (10, "Derived")


def test_an_attribute_that_keras_does_not_have_is_an_error() -> None:
    with pytest.raises(AttributeError, match="tripled"), replacing(Derived, double=None, tripled=None):
        pytest.fail("the block was entered")
    assert Derived.double(5) == 10
