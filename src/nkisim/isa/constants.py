# ruff: noqa: F401  (names for export)
"""`nki.isa.constants`: the enumerations of `nki.isa`."""

from ..enums import (
    dge_mode,
    dma_engine,
    engine,
    matmul_perf_mode,
    nc_version,
    oob_mode,
    reduce_cmd,
)
