"""The CPU backend: the Python side of the C++ core.

The core picks its kernels for this CPU's instruction set when it is loaded; the environment
variable `TKG_ISA` names another: `baseline`, `avx2`, `avx512`, `avx512_vbmi`, `avx512_bf16` or
`avx512_amx`. The last two round operands of products to bfloat16 where the hidden states are
bfloat16. The core starts with one thread for each CPU that this process may use, or as many as
`TKG_NUM_THREADS` or `OMP_NUM_THREADS` says.
"""

from tkg.backends.cpu.calls import attention_block, output_projection
from tkg.backends.cpu.library import (
    computes,
    core,
    get_num_threads,
    measure_fma_rate,
    measure_read_bandwidth,
    set_num_threads,
    unavailable,
)
from tkg.backends.cpu.limits import unsupported
from tkg.backends.cpu.parts import prepare
from tkg.backends.cpu.repeats import repeat, repeat_call, repeat_projection

__all__ = [
    "attention_block",
    "computes",
    "core",
    "get_num_threads",
    "measure_fma_rate",
    "measure_read_bandwidth",
    "output_projection",
    "prepare",
    "repeat",
    "repeat_call",
    "repeat_projection",
    "set_num_threads",
    "unavailable",
    "unsupported",
]
