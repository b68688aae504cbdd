"""Random calls over the whole option space of the block."""

from __future__ import annotations

from dataclasses import replace

from hypothesis import strategies as st

from tkg.testing.case import PADDED, Case

FLOATS = ("float32", "bfloat16", "float16")
FP8 = ("float8_e4m3", "float8_e4m3fn")


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """A legal case, small enough that hundreds run in a minute."""
    pick = lambda *values: draw(st.sampled_from(values))  # noqa: E731
    yes = lambda: draw(st.booleans())  # noqa: E731
    kv_heads = pick(1, 1, 2, 3)
    tokens = pick(1, 1, 1, 2, 3, 7)
    cache = pick("flat", "transposed", "block")
    block_len = pick(1, 3, 8, 16)
    capacity = block_len * draw(st.integers(-(-24 // block_len), 60 // block_len))
    projection = pick("rows", "rows", "transposed", None)
    hidden = 256 if projection == "transposed" else pick(8, 31, 96, 128)
    dtype = pick(*FLOATS)
    case = Case(
        name="random",
        tokens=tokens,
        hidden=hidden,
        hidden_actual=draw(st.integers(hidden // 2, hidden)) if yes() else None,
        q_heads=kv_heads * pick(1, 2, 3, 4, 5),
        kv_heads=kv_heads,
        d_head=pick(2, 6, 16, 20, 64, 80, 128),
        head_axis=yes(),
        cache=cache,
        block_len=block_len,
        capacity=capacity,
        dtype=dtype,
        weight_dtype=pick(None, *FLOATS),
        out_dtype=pick(None, *FLOATS),
        cache_dtype=pick(None, *FLOATS, *FP8, *FP8),
        small_dtype=pick("float32", dtype),
        qkv=pick("NONE", "NONE", "STATIC", "ROW"),
        out="NONE" if projection is None else pick("NONE", "NONE", "STATIC", "ROW"),
        static_format=pick(*FP8),
        scale_rows=pick(1, 128),
        three_scales=yes(),
        eps=pick(None, 1e-5, 1e-6),
        gamma=yes(),
        pre_norm=pick(None, None, 1e-6),
        post_norm=pick(None, None, 1e-5),
        head_gamma=yes(),
        x_rms=pick(0.05, 1.0),
        rope=pick(None, "half", "interleaved"),
        bias_qkv=yes(),
        bias_out=projection is not None and yes(),
        sink=yes(),
        softmax_scale=pick(None, 0.25),
        update=yes(),
        wide=yes(),
        projection=projection,
        lnc=pick(1, 2),
        skip_attention=pick(False, False, False, True),
    )
    return draw(_with_visibility(case))


@st.composite
def _with_visibility(draw: st.DrawFn, case: Case) -> Case:
    room = case.capacity - case.tokens
    batch = draw(st.integers(1, 4))
    length = st.integers(0, room)
    visible = draw(st.sampled_from(("positions", "positions", "causal", "holes", "nothing")))
    window = None
    context = None
    if visible == "positions":
        length = length | st.just(PADDED)
        window = draw(st.none() | st.integers(1, case.capacity))
    elif case.cache == "block":
        context = case.capacity
    lengths = tuple(draw(length) for _ in range(batch))
    skipped = tuple(row for row in range(batch) if draw(st.integers(0, 4)) == 0)
    return replace(
        case,
        visible=visible,
        window=window,
        context=context,
        lengths=lengths,
        skipped=skipped,
    )
