"""The stages that both operations share: rows, a projection's partial sums, the output."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import torch

from tkg.backends.cuda import plan
from tkg.backends.cuda.environment import interpreting
from tkg.backends.cuda.kernels.finish import finish
from tkg.backends.cuda.kernels.prepare import prepare
from tkg.backends.cuda.kernels.project import project
from tkg.backends.cuda.launch import launch
from tkg.backends.cuda.tensors import COMPUTE, in_words, product_dtype, tensor, vector
from tkg.contract import dtypes
from tkg.contract.block import Linear, RMSNorm
from tkg.contract.quantization import QuantizationType

PREPARE_FEATURES = 1024


class Rows(NamedTuple):
    """The input of a projection: `rows` vectors of `features`, wherever they lie.

    Attributes:
        data: the tensor.
        dtype: the contract's name of what the values are (of X, also where `data` is a workspace).
        row, feature: (inner, outer_stride, inner_stride) of the two axes; `inner` None: one part.
    """

    data: torch.Tensor
    dtype: str
    rows: int
    features: int
    row: tuple[int | None, int, int]
    feature: tuple[int | None, int, int]


class Partial(NamedTuple):
    """What `project` leaves: partial sums `[splits, R, N]`, and squares `[splits, R]` or None."""

    sums: torch.Tensor
    squares: torch.Tensor | None


@dataclass(frozen=True)
class Visibility:
    """Which rows are padded: `pos_ids` `[B, S]` or None, S, and S_ctx - S_tkg."""

    pos_ids: torch.Tensor | None
    tokens: int
    prior: int

    def arguments(self) -> dict[str, Any]:
        """As kernels take them."""
        stride = 0 if self.pos_ids is None else self.pos_ids.stride(0)
        return {
            "pos_ids": self.pos_ids,
            "pos_stride": stride,
            "tokens": self.tokens,
            "prior": self.prior,
        }


ALL_ROWS = Visibility(None, 1, 0)


def dense(data: torch.Tensor, dtype: str) -> Rows:
    """The rows of a contiguous matrix."""
    rows, features = data.shape
    return Rows(data, dtype, rows, features, (None, 0, features), (None, 0, 1))


def folds(x: Rows, linear: Linear, norm: RMSNorm | None) -> bool:
    """Whether a norm can be split: gamma before the product, the root after it.

    Not for float16, where x * gamma might leave the range; nor where the normalised row is rounded
    to FP8; nor in float32, where the row's own scale keeps the sums' errors small.
    """
    plain = linear.quantization is not QuantizationType.STATIC
    return norm is not None and x.dtype == dtypes.BFLOAT16 and plain


def prepared(x: Rows, linear: Linear, norm: RMSNorm | None) -> Rows:
    """Rows normalised and rounded to FP8 as the projection asks; as they are if it does not."""
    static = linear.quantization is QuantizationType.STATIC
    if not static and (norm is None or folds(x, linear, norm)):
        return x
    dtype = product_dtype(x.dtype, linear.weight.dtype)
    y = torch.empty((x.rows, x.features), dtype=dtype, device=x.data.device)
    gamma = None if norm is None else vector(norm.weight)
    scale = vector(linear.input_scale) if static else None
    launch(
        prepare,
        (x.rows,),
        x=x.data,
        gamma=gamma,
        input_scale=scale,
        y=y,
        K=x.features,
        eps=0.0 if norm is None else norm.eps,
        **_axes(x),
        NORM=norm is not None,
        BLOCK_K=min(plan.power_of_two(x.features), PREPARE_FEATURES),
    )
    return dense(y, x.dtype)


def partial_sums(x: Rows, linear: Linear, norm: RMSNorm | None = None) -> Partial:
    """Launch a projection of rows that need no more preparing; `norm`: one that it folds in."""
    weight = tensor(linear.weight)
    columns, compute = weight.shape[1], product_dtype(x.dtype, linear.weight.dtype)
    cut = cut_of(x.rows, x.features, linear, x.dtype)
    new = {"dtype": torch.float32, "device": weight.device}
    partial = Partial(
        torch.empty((cut.splits, x.rows, columns), **new),
        None if norm is None else torch.empty((cut.splits, x.rows), **new),
    )
    tiles = plan.up(columns, plan.BLOCK_COLUMNS) + (norm is not None)
    words = in_words(weight)
    stored = weight if words is None else words
    launch(
        project,
        (plan.up(x.rows, cut.block_rows), tiles, cut.splits),
        x=x.data,
        weight=stored,
        gamma=None if norm is None else vector(norm.weight),
        partial=partial.sums,
        squares=partial.squares,
        rows=x.rows,
        K=x.features,
        N=columns,
        **_axes(x),
        weight_stride=stored.stride(0),
        K_SPLIT=cut.k_split,
        BLOCK_R=cut.block_rows,
        BLOCK_N=plan.BLOCK_COLUMNS,
        BLOCK_K=cut.block_k,
        COMPUTE=COMPUTE[compute],
        FP8=linear.weight.dtype in dtypes.FP8,
        WORDS=words is not None,
        FN=linear.weight.dtype == dtypes.FLOAT8_E4M3FN,
    )
    return partial


def cut_of(rows: int, features: int, linear: Linear, dtype: str) -> plan.ProjectionPlan:
    """The plan of a projection."""
    narrow = product_dtype(dtype, linear.weight.dtype) != torch.float32
    programs = plan.INTERPRETED_PROGRAMS if interpreting() else plan.PROGRAMS
    return plan.projection(rows, (features, linear.weight.shape[1]), narrow, programs)


def _axes(x: Rows) -> dict[str, Any]:
    names = ("inner", "outer_stride", "inner_stride")
    parts = (("row", x.row), ("k", x.feature))
    return {f"{part}_{n}": v for part, values in parts for n, v in zip(names, values, strict=True)}


def scale_kind(linear: Linear) -> int:
    """What a projection's weight scale is: see kernels/columns.py."""
    if linear.quantization is QuantizationType.NONE:
        return 0
    if linear.quantization is QuantizationType.ROW:
        return 2
    return linear.weight_scale.shape[1]


def column_arguments(linear: Linear, partial: Partial) -> dict[str, Any]:
    """What the kernels that end a projection take."""
    splits, rows, columns = partial.sums.shape
    return {
        "partial": partial.sums,
        "scale": vector(linear.weight_scale),
        "input_scale": vector(linear.input_scale),
        "bias": vector(linear.bias),
        "rows": rows,
        "N": columns,
        "SPLITS": splits,
        "PADDED_SPLITS": plan.power_of_two(splits),
        "SCALE_KIND": scale_kind(linear),
    }


def finished(
    partial: Partial, linear: Linear, out: torch.Tensor, lnc: int | None, visible: Visibility
) -> torch.Tensor:
    """Launch a projection's end into `out`; `lnc`: of a transposed output, else None."""
    _, rows, columns = partial.sums.shape
    launch(
        finish,
        (rows, plan.up(columns, plan.FINISH_COLUMNS)),
        **column_arguments(linear, partial),
        **visible.arguments(),
        out=out,
        BLOCK_N=plan.FINISH_COLUMNS,
        TRANSPOSED=lnc is not None,
        LNC=lnc or 1,
    )
    return out
