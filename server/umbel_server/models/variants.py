"""The TFLite files of a release.

The plan's weight maps place the weights into its own files. Float16 and int8-full are converted from the float32 file.
"""

from collections.abc import Sequence
from typing import get_args

from umbel.errors import UmbelError
from umbel.messages import Variant
from umbel.placement import place
from umbel.plan import PLACED, Plan
from umbel.tensors import Tensors

VARIANTS: tuple[Variant, ...] = get_args(Variant)
WITHOUT_EXAMPLES: tuple[Variant, ...] = ("float32", "float16", "int8")
"""The variants of a release by default; int8-full must be asked for, because it needs a representative set."""


def check_variants(variants: Sequence[str], representative: bool) -> None:
    """Raise UmbelError on an unknown or repeated variant, and on int8-full without a representative set or the reverse."""
    if not variants or len(set(variants)) != len(variants) or not set(variants) <= set(VARIANTS):
        raise UmbelError(
            f"a release holds one or more of {', '.join(VARIANTS)}, each once; got {', '.join(variants) or 'none'}"
        )
    if "int8-full" in variants and not representative:
        raise UmbelError(
            "int8-full is calibrated on a representative set of inputs: give one with --representative FILE.npz"
        )
    if representative and "int8-full" not in variants:
        raise UmbelError(
            "a representative set was given, and only int8-full is made with it: add that, or leave it out"
        )


def make_variant(variant: Variant, plan: Plan, weights: Tensors, representative: Tensors | None) -> bytes:
    """One file of a release; `representative` (the inputs by name) is for int8-full. Raises UmbelError."""
    if variant in PLACED:
        name = PLACED[variant]
        return place(plan.read(name), weights, plan.manifest.weight_maps[name])
    whole = make_variant("float32", plan, weights, None)
    # Imported here, because both bring LiteRT's schema, and every command of the CLI imports this module.
    if variant == "float16":
        from umbel_server.tflite.float16 import float16

        return float16(whole)
    from umbel_server.compiler.full_integer import full_integer

    return full_integer(whole, representative or {})
