"""The oldest LiteRT runtime that can run a TFLite file, found from the versions of the file's ops."""

import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from umbel_server.compiler.errors import CompileError

Version = tuple[int, ...]

_OLDEST: Version = (2, 6)
"""The first runtime with resource variables, which hold a plan's weights."""
_NEWEST: Version = (2, 20)
"""The newest runtime in the table; a version of an op that is newer than the table needs a newer runtime."""

# For each version of an op that came after 2.6, the first release that has it (from LiteRT's
# tools/versioning/runtime_version.cc).
_CAME_WITH = """
    CONV_2D 6:2.9 7:2.11 8:2.15             DEPTHWISE_CONV_2D 7:2.11              TRANSPOSE_CONV 4:2.13 5:2.15
    FULLY_CONNECTED 10:2.11 11:2.15 12:2.17 13:2.18                               EMBEDDING_LOOKUP 4:2.18
    ADD 5:2.13     MUL 6:2.11 7:2.13        ABS 5:2.12      EXP 2:2.12            LOG 2:2.15      RSQRT 3:2.15
    CAST 2:2.7 3:2.8 4:2.9 5:2.12 6:2.15 7:2.17                                   DEQUANTIZE 5:2.7 6:2.18
    QUANTIZE 3:2.7 CONCATENATION 4:2.14     PACK 4:2.13     SLICE 6:2.14          STRIDED_SLICE 7:2.14 8:2.14
    GATHER 6:2.13 7:2.15                    GATHER_ND 4:2.13 5:2.16               TILE 3:2.8      FILL 4:2.12
    TRANSPOSE 6:2.12 7:2.14.4               MIRROR_PAD 3:2.12                     TOPK_V2 3:2.13  WHERE 2:2.8
    ARG_MAX 3:2.9  ARG_MIN 3:2.9            EQUAL 4:2.13    GREATER_EQUAL 3:2.13  LESS 3:2.13     SELECT 3:2.12 4:2.12
    SELECT_V2 2:2.12                        FLOOR_DIV 3:2.13                      FLOOR_MOD 2:2.13 RANGE 2:2.14
    SPACE_TO_BATCH_ND 4:2.12                BATCH_TO_SPACE_ND 4:2.12              GELU 1:2.9 2:2.9
    RELU_0_TO_1 1:2.10                      ATAN2 1:2.10    SIGN 1:2.11 2:2.12    BUCKETIZE 1:2.8
    UNSORTED_SEGMENT_PROD 1:2.10            UNSORTED_SEGMENT_MAX 1:2.10           UNSORTED_SEGMENT_MIN 1:2.11
    UNSORTED_SEGMENT_SUM 1:2.10             DYNAMIC_UPDATE_SLICE 1:2.9 2:2.17 3:2.19 4:2.20
    RANDOM_STANDARD_NORMAL 1:2.8            RANDOM_UNIFORM 1:2.8                  MULTINOMIAL 1:2.8
    BITCAST 1:2.13 BITWISE_XOR 1:2.13       RIGHT_SHIFT 1:2.13                    DILATE 1:2.15   REDUCE_WINDOW 1:2.15
"""
_NAMES = {code: name for name, code in vars(schema.BuiltinOperator).items() if isinstance(code, int)}


def version_of(text: str) -> Version:
    """The version "2.14" or "2.14.0" as numbers; raises CompileError on other text, and on a runtime that is too old."""
    parts = text.split(".")
    if len(parts) < 2 or not all(part.isdecimal() for part in parts):
        raise CompileError(f"the oldest runtime should be a version such as 2.14, got {text!r}")
    version = tuple(int(part) for part in parts)
    if version < _OLDEST:
        raise CompileError(f"the oldest runtime is {text}, but plans need {_text(_OLDEST)} or newer to hold weights")
    return version


def check_runtime(name: str, file: bytes, oldest: Version) -> None:
    """Raise CompileError when the TFLite file called `name` holds an op that the runtime `oldest` cannot run."""
    for op, version, needed in ops(file):
        if needed > oldest:
            more = "a newer LiteRT than 2.20" if needed > _NEWEST else f"LiteRT {_text(needed)} or newer"
            raise CompileError(
                f"{name} holds op {op} in version {version}, which needs {more}, and the oldest runtime is {_text(oldest)}: "
                "leave out the layer that makes it, or compile with a newer --min-runtime for devices that have one"
            )


def ops(file: bytes) -> list[tuple[str, int, Version]]:
    """Every kind of op in a TFLite file: its name, its version, and the first runtime that has it."""
    table = _table()
    model = schema.Model.GetRootAs(np.frombuffer(file, np.uint8), 0)
    found = []
    for code in (model.OperatorCodes(i) for i in range(model.OperatorCodesLength())):
        name = _NAMES.get(max(code.BuiltinCode(), code.DeprecatedBuiltinCode()), "unknown")
        known, version = table.get(name, {}), int(code.Version())
        newer = name.startswith("STABLEHLO") or name == "unknown" or (known and version > max(known))
        needed = (*_NEWEST, 1) if newer else known.get(version, _OLDEST)
        found.append((name, version, needed))
    return found


def _table() -> dict[str, dict[int, Version]]:
    table: dict[str, dict[int, Version]] = {}
    for word in _CAME_WITH.split():
        if ":" not in word:
            versions = table.setdefault(word, {})
        else:
            version, _, release = word.partition(":")
            versions[int(version)] = tuple(int(part) for part in release.split("."))
    return table


def _text(version: Version) -> str:
    return ".".join(map(str, version))
