# ruff: noqa: F401  (names for export)
"""Vector engine: element-wise, reductions, scans and selections on tiles of SBUF and PSUM."""

from .copies import memset, nc_stream_shuffle, tensor_copy, tensor_copy_predicated
from .elementwise import reciprocal, scalar_tensor_tensor, tensor_scalar, tensor_tensor
from .reduce import bn_aggr, bn_stats, tensor_reduce, tensor_scalar_reduce
from .scan import tensor_scalar_cumulative, tensor_tensor_scan
from .select import range_select, select_reduce
from .top8 import max8, nc_find_index8, nc_match_replace8
