"""The output projection: every layout, from and to HBM and SBUF, on one core and two."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest

from nkisim.report import Report
from tests.calls import projection_check
from tests.neuron.on_chip import close, on_cores, put, rng, rounded, values_of
from tkg.backends.neuron import launch, layout
from tkg.backends.neuron.column_tiles import tiled_columns
from tkg.backends.neuron.output_columns import weights_stay
from tkg.backends.neuron.output_projection_tkg import output_projection_tkg
from tkg.contract.quantization import QuantizationType
from tkg.testing.case import ProjectionCase
from tkg.testing.verify import projection_truth

BF16, FP8 = ml_dtypes.bfloat16, ml_dtypes.float8_e4m3
NONE, STATIC, ROW = QuantizationType.NONE, QuantizationType.STATIC, QuantizationType.ROW
Arrays = dict[str, Any]


def draw(d: int, batch: int, heads: int, tokens: int, hidden: int, dtype: Any = BF16) -> Arrays:
    attention = rng().standard_normal((d, batch, heads, tokens)).astype(dtype)
    weight = rng(1).standard_normal((heads * d, hidden)) * (heads * d) ** -0.5
    return {"attention": attention, "weight": weight.astype(dtype)}


def exactly(call: Arrays) -> np.ndarray:
    """[B*S, H] before it is rounded, in float64."""
    attention = call["attention"].astype(np.float64)
    x = attention.transpose(1, 3, 2, 0).reshape(-1, len(call["weight"]))
    mode = call.get("quantization_type", NONE)
    scale = 1.0
    if mode == STATIC:
        step = float(call["input_scale"][0, 0])
        x = np.clip(x / step, -240, 240).astype(FP8).astype(np.float64)
        scale = step * call["weight_scale"][:1].astype(np.float64)
    elif mode == ROW:
        scale = call["weight_scale"][:1].astype(np.float64)
    bias = call.get("bias", np.zeros((1, 1))).astype(np.float64)
    return x @ call["weight"].astype(np.float64) * scale + bias


def to_transposed(rows: np.ndarray, lnc: int) -> np.ndarray:
    """[R, H] as [128, LNC, H2, R], h = core*Hl + h1*H2 + h2."""
    return rows.reshape(len(rows), lnc, 128, -1).transpose(2, 1, 3, 0)


def to_rows(out: np.ndarray) -> np.ndarray:
    """[128, LNC, H2, R] as [R, H]."""
    return out.transpose(3, 1, 0, 2).reshape(out.shape[3], -1)


def from_hbm(call: Arrays, lnc: int, transposed: bool) -> np.ndarray:
    """[R, H] by the kernel as the host launches it."""
    out = launch.launch("output_projection_tkg", lnc, call | {"TRANSPOSE_OUT": transposed})
    return to_rows(out) if transposed else out


def on_chip(call: Arrays, lnc: int, transposed: bool) -> np.ndarray:
    """[R, H] with the attention output and the result in SBUF."""
    call = dict(call)
    attention = call.pop("attention")
    mode = call.pop("quantization_type", NONE)
    names = list(call)

    def body(sbm, *operands):
        given = dict(zip(names, operands, strict=True))
        out = output_projection_tkg(
            put(sbm, attention), **given, quantization_type=mode, TRANSPOSE_OUT=transposed,
            OUT_IN_SB=True, sbm=sbm,
        )  # fmt: skip
        result = values_of(out)
        sbm.free("output_projection.out")
        return result

    parts = on_cores(body, *call.values(), lnc=lnc)
    return to_rows(np.stack(parts, 1)) if transposed else np.concatenate(parts, 1)


PLACES = {"HBM": from_hbm, "SBUF": on_chip}


def check(call: Arrays, got: np.ndarray) -> None:
    """Float32 as close as sums are; narrow dtypes within one rounding of that."""
    true = exactly(call)
    dtype = call["attention"].dtype
    assert got.dtype == dtype
    if dtype == np.float32:
        return close(got, true)
    slack = 2e-6 * np.abs(true).max()
    got = got.astype(np.float64)
    assert (got >= rounded(true - slack, dtype)).all()
    assert (got <= rounded(true + slack, dtype)).all()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("heads", [1, 3, 8])
@pytest.mark.parametrize("d", [2, 32, 64, 80, 128])
def test_every_layout(d: int, heads: int, lnc: int, transposed: bool, place: str) -> None:
    """D of 32 and 64 is folded from SBUF, all that divide 128 from HBM; 80 never is."""
    call = draw(d, 2, heads, 3, 512)
    check(call, PLACES[place](call, lnc, transposed))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("lnc", [1, 2])
def test_dtypes_and_bias(lnc: int, transposed: bool, dtype: type, place: str) -> None:
    call = draw(64, 1, 4, 2, 768, dtype)
    call["bias"] = rng(2).standard_normal((1, 768)).astype(np.float32)
    check(call, PLACES[place](call, lnc, transposed))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("rows", [1, 63, 64, 65, 127, 128])
@pytest.mark.parametrize("transposed", [False, True])
def test_rows(transposed: bool, rows: int, place: str) -> None:
    """At 64 rows the host's kernel turns from stationary weights to moving ones."""
    call = draw(64, rows, 2, 1, 256)
    check(call, PLACES[place](call, 1, transposed))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("lnc, hidden", [(1, 1), (1, 130), (1, 513), (2, 2), (2, 1026), (2, 4096)])
def test_any_number_of_columns(lnc: int, hidden: int, place: str) -> None:
    call = draw(128, 3, 2, 1, hidden)
    call["bias"] = rng(2).standard_normal((1, hidden)).astype(BF16)
    check(call, PLACES[place](call, lnc, False))


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("with_bias", [False, True])
@pytest.mark.parametrize("scale_rows", [1, 128])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("mode", [STATIC, ROW])
def test_fp8_weights(
    mode: QuantizationType, lnc: int, transposed: bool, scale_rows: int, with_bias: bool, place: str
) -> None:
    hidden = 512
    call = draw(64, 2, 8, 1, hidden)
    call["weight"] = (call["weight"].astype(np.float32) * 100).astype(FP8)
    call["quantization_type"] = mode
    scales = rng(2).uniform(0.01, 0.3, (1, hidden if mode == ROW else 1)).astype(np.float32)
    call["weight_scale"] = np.repeat(scales, scale_rows, 0)
    if mode == STATIC:
        call["input_scale"] = np.full((scale_rows, 1), 2.0**-7, np.float32)  # 240 is at 1.875
    if with_bias:
        call["bias"] = rng(3).standard_normal((1, hidden)).astype(BF16)
    check(call, PLACES[place](call, lnc, transposed))


@pytest.mark.parametrize("rows", [6, 100])
@pytest.mark.parametrize("heads, paired", [(2, True), (3, False)])
def test_fp8_times_fp8_goes_two_tiles_at_a_time(heads: int, paired: bool, rows: int) -> None:
    """double_row takes half the matmuls; an odd number of contraction tiles leaves none to pair."""
    call = draw(128, rows, heads, 1, 256)
    call["weight"] = (call["weight"].astype(np.float32) * 100).astype(FP8)
    call |= {"quantization_type": STATIC, "weight_scale": np.ones((1, 1), np.float32)}
    call["input_scale"] = np.full((1, 1), 2.0**-7, np.float32)
    run = launch.run_with_report("output_projection_tkg", 1, call)
    check(call, run.result)
    outputs = 1 if rows > 64 else 256 // 128
    assert matmuls(run.report) == outputs * (heads // 2 if paired else heads)


@pytest.mark.parametrize("d, heads, tiles", [(32, 8, 2), (64, 3, 3), (64, 6, 3), (128, 3, 3)])
def test_small_heads_share_the_contraction(d: int, heads: int, tiles: int) -> None:
    """Folding N into D: as few matmuls as there are tiles of up to 128 rows."""
    call = draw(d, 2, heads, 1, 128)
    run = launch.run_with_report("output_projection_tkg", 1, call)
    check(call, run.result)
    assert matmuls(run.report) == tiles


def matmuls(report: Report) -> int:
    return report.instructions["nc_matmul"]


@pytest.mark.parametrize(
    "rows, hidden, transposed", [(2, 128, True), (2, 256, False), (70, 2176, False)]
)
def test_more_weights_than_the_ring_holds(rows: int, hidden: int, transposed: bool) -> None:
    """Five contraction tiles, or five blocks of 512 columns."""
    call = draw(128, rows, 5, 1, hidden)
    check(call, from_hbm(call, 1, transposed))
    check(call, on_chip(call, 1, transposed))


def test_more_sums_than_psum_holds() -> None:
    """128 rows of 4608 features, transposed: 36 tiles, four a bank."""
    call = draw(32, 128, 2, 1, 4608)
    check(call, from_hbm(call, 1, True))


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("x, w", [(np.float32, BF16), (BF16, np.float32), (np.float16, BF16)])
@pytest.mark.parametrize("transposed", [False, True])
def test_two_dtypes(transposed: bool, x: type, w: type, lnc: int) -> None:
    call = draw(64, 2, 3, 1, 256, np.float32)
    call = {"attention": call["attention"].astype(x), "weight": call["weight"].astype(w)}
    check(call, from_hbm(call, lnc, transposed))
    check(call, on_chip(call, lnc, transposed))


def test_both_cores_read_half_of_the_weights() -> None:
    """H is sharded and nothing is exchanged."""
    call = draw(128, 2, 4, 1, 1024)
    report = launch.run_with_report("output_projection_tkg", 2, call).report
    tensors = {tensor.allocation.name: tensor for tensor in report.tensors}
    assert tensors["weight"].read_bytes == call["weight"].nbytes
    assert "sendrecv" not in report.instructions


@pytest.mark.parametrize(
    "change, text",
    [
        ({"weight": (130, 256)}, "weight has 130 rows, attention 2\\*64"),
        ({"attention": (64, 513, 2, 1)}, "B\\*S is 513, at most 512"),
        ({"weight": (128, 200), "TRANSPOSE_OUT": True}, "H/LNC is 200, not a multiple of 128"),
    ],
)
def test_limits_are_told(change: dict[str, Any], text: str) -> None:
    """Who calls the kernel without the host's checks gets the limit in words."""
    call = {"attention": (64, 2, 2, 1), "weight": (128, 256), "TRANSPOSE_OUT": False} | change
    arrays = {k: np.zeros(v, BF16) if isinstance(v, tuple) else v for k, v in call.items()}
    with pytest.raises(AssertionError, match=text):
        launch.launch("output_projection_tkg", 1, arrays)


@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("d_head, batch", [(129, 3), (256, 130), (600, 2), (32, 512), (513, 1)])
def test_heads_and_rows_beyond_the_partitions(
    d_head: int, batch: int, transposed: bool, lnc: int
) -> None:
    case = ProjectionCase(
        name="large", d_head=d_head, heads=2, batch=batch, hidden=256, dtype="float32", bias=True,
        transposed=transposed, lnc=lnc,
    )  # fmt: skip
    call = case.inputs() | {"lnc": lnc}
    assert projection_check("neuron", call, projection_truth(call)).ok


def test_a_row_lies_on_every_partition_asked_for() -> None:
    """`broadcast_row`: read once, then shuffled."""
    row = rng().standard_normal((1, 40)).astype(BF16)

    def body(sbm, row):
        rows = [layout.broadcast_row(sbm, row, n, 3, 20, f"r{n}") for n in (1, 33, 128)]
        return [values_of(tile) for tile in rows if tile is not None]

    (got,) = on_cores(body, row)
    for n, tile in zip((1, 33, 128), got, strict=True):
        assert len(tile) >= n
        assert (tile == row[0, 3:23]).all()


@pytest.mark.parametrize("dtype", [BF16, np.float16, np.float32], ids=["bf16", "f16", "f32"])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("lnc", [1, 2])
@pytest.mark.parametrize("d, batch, tokens", [(128, 1, 1), (128, 2, 16), (64, 5, 1), (80, 3, 3)])
def test_columns_in_tiles(
    d: int, batch: int, tokens: int, lnc: int, scaled: bool, dtype: Any
) -> None:
    """FP8 weights, up to 32 rows: all but a core's last 1024 columns go in tiles."""
    hidden = 2048 * lnc
    call = draw(d, batch, 8, tokens, hidden, dtype)
    call["weight"] = call["weight"].astype(FP8)
    if scaled:
        scale = rng(2).uniform(0.5, 2, (128, hidden)).astype(np.float32)
        call |= {"quantization_type": ROW, "weight_scale": np.repeat(scale[:1], 128, 0)}
    run = launch.run_with_report("output_projection_tkg", lnc, call)
    check(call, run.result)
    records = run.report.program.cores[0].records or ()
    assert any(record.work.get("tile") for record in records)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("lnc", [1, 2])
def test_a_bias_with_columns_in_tiles(lnc: int, scaled: bool, rows: int) -> None:
    """They go in tiles where the bias need not be spread over several rows."""
    call = draw(128, rows, 8, 1, 2048 * lnc, BF16)
    call["weight"] = call["weight"].astype(FP8)
    call["bias"] = rng(3).standard_normal((1, 2048 * lnc)).astype(BF16)
    if scaled:
        scale = rng(2).uniform(0.5, 2, (1, 2048 * lnc)).astype(np.float32)
        call |= {"quantization_type": ROW, "weight_scale": scale}
    run = launch.run_with_report("output_projection_tkg", lnc, call)
    check(call, run.result)


@pytest.mark.parametrize(
    "rows, share, count",
    [(1, 4096, 3072), (32, 2048, 1024), (33, 4096, 0), (1, 1024, 0), (1, 1536, 0)],
)
def test_how_many_columns_go_in_tiles(rows: int, share: int, count: int) -> None:
    assert tiled_columns(rows, share) == count


def test_weights_stay_only_where_that_is_cheaper_and_fits() -> None:
    """Not for more than 64 rows, nor with more sums than PSUM has room for."""
    (got,) = on_cores(
        lambda sbm: [weights_stay(*c) for c in ((1, 1024), (65, 128), (64, 8192), (8, 100))]
    )
    assert got == [True, False, False, False]
