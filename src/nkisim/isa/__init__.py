# ruff: noqa: F401  (names for export)
"""`nki.isa`."""

from typing import Any

from ..enums import (
    dge_mode,
    dma_engine,
    engine,
    matmul_perf_mode,
    nc_version,
    oob_mode,
    reduce_cmd,
)
from ..errors import NkiValidationError
from ..missing import refuse_name as _refuse_name
from ..record import NkiInstruction
from ..registers import VirtualRegister
from . import activations, constants, ops
from .chip import get_nc_sub_version, get_nc_version
from .cores import core_barrier, sendrecv
from .dma import dma_copy
from .dma_compute import dma_compute
from .dma_transpose import dma_transpose
from .gather import local_gather, nc_n_gather
from .gen4 import activate2, exponential, nc_matmul_mx, quantize_mx, rand2
from .gpsimd import affine_select, iota, tensor_partition_reduce
from .random import dropout, rand_get_state, rand_set_state, rng, set_rng_seed
from .scalar import activation, activation_reduce
from .search import nonzero_with_count, sequence_bounds, topk
from .sequencer import register_alloc, register_load, register_move, register_store
from .tensor import nc_matmul, nc_transpose
from .vector import (
    bn_aggr,
    bn_stats,
    max8,
    memset,
    nc_find_index8,
    nc_match_replace8,
    nc_stream_shuffle,
    range_select,
    reciprocal,
    scalar_tensor_tensor,
    select_reduce,
    tensor_copy,
    tensor_copy_predicated,
    tensor_reduce,
    tensor_scalar,
    tensor_scalar_cumulative,
    tensor_scalar_reduce,
    tensor_tensor,
    tensor_tensor_scan,
)

# The engines' names from before the enumeration.
unknown_engine = engine.unknown
tensor_engine = engine.tensor
scalar_engine = engine.scalar
gpsimd_engine = engine.gpsimd
vector_engine = engine.vector


def __getattr__(name: str) -> Any:
    _refuse_name("nki.isa", name)
