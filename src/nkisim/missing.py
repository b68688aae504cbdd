"""Names that a module of NKI has not, or no longer: each fails by name and says what to use."""

from __future__ import annotations

from typing import NoReturn

_SIMULATE = "nki.simulate, or call the kernel; report.latency_us has the modelled time"
_INDEX = "slices: tensor[a:b], nl.ds, tensor.ap"

# Former names of NKI (migration guide, release notes) and what took their place.
_REPLACED = {
    "nki.baremetal": _SIMULATE,
    "nki.benchmark": _SIMULATE,
    "nki.profile": _SIMULATE,
    "nki.simulate_kernel": "nki.simulate(kernel)(...)",
    "nki.isa.tensor_copy_dynamic_src": "nki.isa.tensor_copy with src.ap(..., scalar_offset=)",
    "nki.isa.tensor_copy_dynamic_dst": "nki.isa.tensor_copy with dst.ap(..., scalar_offset=)",
    "nki.isa.builtin_custom_op": "the instructions of nki.isa",
    "nki.language.arange": _INDEX,
    "nki.language.mgrid": _INDEX,
    "nki.language.par_dim": "a plain shape: dimension 0 is the partition dimension",
    "nki.language.all_reduce": "nki.isa.tensor_partition_reduce, or a matmul with ones",
    "nki.language.atomic_rmw": "nki.isa.dma_compute",
    "nki.language.loop_reduce": "a loop that accumulates into a tile",
    "nki.language.static_cast": "nki.isa.tensor_copy into a tile of the other dtype",
    "nki.language.finfo": "numpy.finfo or ml_dtypes.finfo",
    "nki.language.fp32": "float(numpy.finfo(numpy.float32).min)",
}


def refuse_name(module: str, name: str) -> NoReturn:
    """AttributeError that names the module, the name and its successor."""
    full = f"{module}.{name}"
    if full in _REPLACED:
        raise AttributeError(f"{full}: removed from NKI; use {_REPLACED[full]}")
    raise AttributeError(f"{full}: neither NKI 0.6 nor this simulator has it")
