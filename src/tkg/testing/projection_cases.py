"""Cases of `output_projection_tkg`."""

from __future__ import annotations

from tkg.testing.case import ProjectionCase

_EDGE = frozenset({"ci", "edge"})

PROJECTION_CASES: tuple[ProjectionCase, ...] = (
    ProjectionCase(
        name="projection-llama3-8b-tp8",
        tags=frozenset({"ci", "smoke", "model"}),
        d_head=128,
        hidden=4096,
        dtype="bfloat16",
    ),
    ProjectionCase(
        name="projection-gpt-oss",
        tags=frozenset({"ci", "model"}),
        heads=8,
        hidden=2880,
        dtype="bfloat16",
        bias=True,
    ),
    ProjectionCase(name="projection-float16", tags=_EDGE, tokens=4, dtype="float16", bias=True),
    ProjectionCase(name="projection-mixed", tags=_EDGE, weight_dtype="bfloat16", hidden=130),
    ProjectionCase(name="projection-tiny", tags=_EDGE, d_head=2, heads=1, batch=1, hidden=1),
    ProjectionCase(name="projection-many-rows", tags=_EDGE, batch=3, tokens=77, hidden=96),
    ProjectionCase(name="projection-transposed", tags=_EDGE, tokens=3, transposed=True),
    ProjectionCase(
        name="projection-transposed-lnc2", tags=_EDGE, hidden=768, transposed=True, lnc=2, bias=True
    ),
    ProjectionCase(name="projection-static", tags=_EDGE, quantization="STATIC", bias=True),
    ProjectionCase(
        name="projection-static-fn",
        tags=_EDGE,
        quantization="STATIC",
        static_format="float8_e4m3fn",
        scale_rows=128,
        dtype="bfloat16",
    ),
    ProjectionCase(name="projection-row", tags=_EDGE, quantization="ROW", dtype="bfloat16"),
    ProjectionCase(
        name="projection-row-fn-transposed-lnc2",
        tags=_EDGE,
        quantization="ROW",
        static_format="float8_e4m3fn",
        scale_rows=128,
        hidden=512,
        transposed=True,
        lnc=2,
    ),
)
