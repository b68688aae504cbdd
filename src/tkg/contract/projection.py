"""One call of the output projection: `out = attention @ weight + bias`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from tkg.contract import dtypes
from tkg.contract.arrays import AnyArray, Array
from tkg.contract.block import Linear, Part, arrays_of, projection_shape
from tkg.contract.block_rules import check_lnc, check_transposed
from tkg.contract.errors import Rules
from tkg.contract.keywords import require, with_handles
from tkg.contract.linear_rules import (
    check_dtype,
    check_linear,
    check_one_kind,
    check_rows,
)
from tkg.contract.once import once

PROJECTION_NAMES = {
    "projection.weight": "weight",
    "projection.bias": "bias",
    "projection.quantization": "quantization_type",
    "projection.weight_scale": "weight_scale",
    "projection.input_scale": "input_scale",
    "transposed_out": "TRANSPOSE_OUT",
}


@dataclass(frozen=True)
class ProjectionCall(Part):
    """`out[b*S + s, h] = sum_{n,d} attention[d, b, n, s] * weight[n*D + d, h] + bias[h]`.

    Attributes:
        attention: `[D, B, N, S]` float32, float16 or bfloat16.
        projection: the weight `[N * D, H]`, its bias and scales.
        transposed_out: output as `[128, lnc, H // lnc // 128, B * S]`.
        lnc: logical cores, 1 or 2: the layout of `transposed_out`.
    """

    attention: AnyArray
    projection: Linear
    transposed_out: bool = False
    lnc: int = 1
    _arrays = ("attention",)

    operation = "output_projection_tkg"

    def out_shape(self) -> tuple[int, ...]:
        """Shape of the output."""
        _, batch, _, tokens = self.attention.shape
        hidden = self.projection.weight.shape[1]
        return projection_shape(hidden, batch * tokens, self.transposed_out, self.lnc)

    @once
    def arrays(self) -> dict[str, Array]:
        """Every array of the call by its field's name."""
        return {"attention": self.attention} | arrays_of(self.projection, "projection.")

    @property
    def device(self) -> str:
        """Where all arrays of the call are."""
        return self.attention.device

    def __str__(self) -> str:
        parts = [f"  {name}: {array}" for name, array in self.arrays.items()]
        return "\n".join([f"{self.operation}: out {list(self.out_shape())}", *parts])


def projection_call(arguments: Mapping[str, Any]) -> ProjectionCall:
    """The validated call object of `output_projection_tkg`'s arguments.

    Raises:
        ValueError, TypeError: with all broken rules.
    """
    rules = Rules(ProjectionCall.operation, PROJECTION_NAMES)
    arrays = ("attention", "weight", "bias", "weight_scale", "input_scale")
    args = with_handles(rules, arguments, arrays, ("quantization_type",))
    require(rules, args, ("attention", "weight"))
    if args["OUT_IN_SB"]:
        fix = "On the host, leave it out"
        rules.broken("OUT_IN_SB", "exists only inside an NKI kernel", args["OUT_IN_SB"], fix)
    linear = Linear(
        args["weight"],
        args["bias"],
        args["quantization_type"],
        args["weight_scale"],
        args["input_scale"],
    )
    call = ProjectionCall(args["attention"], linear, bool(args["TRANSPOSE_OUT"]), args["lnc"])
    return checked_projection(rules, call)


def checked_projection(rules: Rules, call: ProjectionCall) -> ProjectionCall:
    """Check a projection call; raise all broken rules, or return the call."""
    check_lnc(rules, call.lnc)
    if check_linear(rules, "projection", call.projection, rows=None, sections=1):
        check_transposed(rules, call.projection, call.transposed_out, call.lnc)
    check_one_kind(rules, call.arrays.items())
    return checked_attention(rules, call)


def checked_attention(rules: Rules, call: ProjectionCall) -> ProjectionCall:
    """Check what changes from call to call; raise all broken rules, or return the call."""
    attention = call.attention
    check_dtype(rules, "attention", attention, dtypes.FLOATS)
    if attention.ndim == 4 and min(attention.shape) > 0:
        d_head, _, heads, _ = attention.shape
        check_rows(rules, "projection", call.projection, ("N * D", heads, d_head))
    else:
        rule = "must be [D, B, N, S], all sizes at least 1"
        rules.broken("attention", rule, f"shape {attention.shape}")
    weight = call.projection.weight
    check_one_kind(rules, (("attention", attention), ("projection.weight", weight)))
    rules.raise_broken()
    return call
