# ruff: noqa: F401  (names for export)
"""`nki.language`: tensors, tiles, element-wise functions and loops on top of `nki.isa`.

An operator such as `add` is an `Op` (see `isa.ops`): it serves as `op=` and, called, as a function.
"""

from typing import Any

from ..enums import PRIVATE_HBM as private_hbm
from ..enums import PSUM as psum
from ..enums import SBUF as sbuf
from ..enums import SHARED_HBM as shared_hbm
from ..enums import MemoryRegion
from ..indexing import DynamicSlice as ds
from ..isa.ops import define as _define
from ..missing import refuse_name as _refuse_name
from ..tensor import NKIObject, NkiTensor
from .creation import (
    empty_like,
    full,
    ndarray,
    ones,
    rand,
    random_seed,
    shared_constant,
    shared_identity_matrix,
    zeros,
    zeros_like,
)
from .loops import (
    affine_range,
    dynamic_range,
    fori_loop,
    no_reorder,
    sequential_range,
    static_range,
    while_loop,
)
from .math import (
    abs,
    abs_max,
    abs_min,
    add,
    arctan,
    bitwise_and,
    bitwise_or,
    bitwise_xor,
    ceil,
    cos,
    divide,
    dropout,
    equal,
    erf,
    erf_dx,
    exp,
    floor,
    fmod,
    gelu,
    gelu_apprx_sigmoid,
    gelu_apprx_sigmoid_dx,
    gelu_apprx_tanh,
    gelu_dx,
    greater,
    greater_equal,
    invert,
    left_shift,
    less,
    less_equal,
    log,
    logical_and,
    logical_not,
    logical_or,
    logical_xor,
    maximum,
    minimum,
    mish,
    mod,
    multiply,
    negative,
    not_equal,
    power,
    reciprocal,
    relu,
    right_shift,
    rsqrt,
    sigmoid,
    sign,
    silu,
    silu_dx,
    sin,
    softplus,
    sqrt,
    square,
    subtract,
    tan,
    tanh,
    trunc,
)
from .math import copy_op as copy
from .move import (
    broadcast_to,
    expand_dims,
    gather_flattened,
    load,
    load_transpose2d,
    store,
    transpose,
    where,
)
from .reduce import all, matmul, max, mean, min, prod, rms_norm, softmax, sum, var
from .sizes import is_hbm, is_on_chip, is_psum, is_sbuf, tile_size
from .spmd import device_print, num_programs, program_id, program_ndim

DType = str
hbm = private_hbm

bool_ = "bool"
int8 = "int8"
int16 = "int16"
int32 = "int32"
uint8 = "uint8"
uint16 = "uint16"
uint32 = "uint32"
float16 = "float16"
bfloat16 = "bfloat16"
tfloat32 = "tfloat32"
float32 = "float32"
float8_e4m3 = "float8_e4m3"
float8_e4m3fn = "float8_e4m3fn"
float8_e5m2 = "float8_e5m2"
float8_e8m0fnu = "float8_e8m0fnu"
float8_e5m2_x4 = "float8_e5m2_x4"
float8_e4m3fn_x4 = "float8_e4m3fn_x4"
float4_e2m1fn_x4 = "float4_e2m1fn_x4"

# Operators that are no functions.
average = _define("average")
bypass = _define("bypass")
prelu = _define("prelu")


def __getattr__(name: str) -> Any:
    _refuse_name("nki.language", name)
