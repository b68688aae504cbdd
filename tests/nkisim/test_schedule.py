"""The clock: single instructions against published figures, contention, order, cores."""

from __future__ import annotations

from typing import Any

import pytest

from nkisim.chips import TRN1, TRN2
from nkisim.enums import dge_mode
from nkisim.enums import engine as Engine
from nkisim.errors import NkiValidationError
from nkisim.schedule import Timeline, _Ramp
from nkisim.tensor import NkiTensor
from tests.nkisim.scripts import Script


def run(script: Script, schedule: Any = ()) -> Timeline:
    return script.report(schedule).timeline


def spent(timeline: Timeline, number: int) -> float:
    return timeline.done[number] - timeline.start[number]


# -- single instructions: the profiler's figures (facts sheet 5.4, 6.2), nanoseconds --------------


@pytest.mark.parametrize(("columns", "published"), [(128, 400), (4096, 3709)])
def test_activation(columns: int, published: float) -> None:
    script = Script()
    a, b = (script.sbuf((128, columns), "bfloat16") for _ in range(2))
    script.memset(a)
    script.activation(b, a)
    timeline = run(script)
    # The table load (1,286 ns) is on top, from the start.
    begin = max(timeline.start[1], 1286.0)
    assert timeline.done[1] - begin == pytest.approx(published, rel=0.01)


@pytest.mark.parametrize(
    ("source", "two", "published"),
    [("psum", False, 701), ("psum", True, 694), ("sbuf", False, 428)],
)
def test_vector_float32_of_512(source: str, two: bool, published: float) -> None:
    script = Script()
    make = script.psum if source == "psum" else script.sbuf
    a, b, c = make((128, 512)), script.sbuf((128, 512)), script.sbuf((128, 512))
    for tile in (a, b):
        script.memset(tile)
    _ = script.tensor_tensor(c, b, a) if two else script.copy(c, a)
    assert spent(run(script), 2) == pytest.approx(published, rel=0.06)


def test_vector_on_trn1() -> None:
    script = Script("trn1")
    tiles = [script.sbuf((128, 8192), "float32") for _ in range(3)]
    for tile in tiles[:2]:
        script.memset(tile)
    script.tensor_tensor(tiles[2], tiles[0], tiles[1])
    assert spent(run(script), 2) == pytest.approx(14_968, rel=0.01)


def matmuls(count: int, dtype: str = "float32", n: int = 512) -> tuple[Script, Timeline]:
    script = Script()
    a, b, c = script.sbuf((128, 128), dtype), script.sbuf((128, n), dtype), script.psum((128, 512))
    script.memset(a)
    script.memset(b)
    for _ in range(count):
        script.matmul(c[:, 0:n], a, b)
    return script, run(script)


def test_float32_matmul_takes_two_passes_of_429_ns() -> None:
    _, timeline = matmuls(40)
    period = timeline.start[40] - timeline.start[39]
    assert period == pytest.approx(858, rel=0.01)
    assert timeline.done[40] - timeline.held[40] == pytest.approx(600 - 429, rel=0.01)


def test_the_first_stationary_load_shows() -> None:
    _, timeline = matmuls(1)
    slow = 853.3 / 0.5  # the clock ramps during the first 3 us
    assert timeline.held[2] - timeline.start[2] == pytest.approx(197 + slow, rel=0.01)


def test_matrix_vector_takes_64_cycles() -> None:
    """Perf guide: with one moving column a multiply is issued every 64 cycles."""
    _, timeline = matmuls(300, "bfloat16", n=1)
    assert timeline.start[300] - timeline.start[299] == pytest.approx(64 / 2.4, rel=1e-6)


@pytest.mark.parametrize("pause, warm", [(0.1, True), (3.0, False)])
def test_work_at_half_the_clock_is_use(pause: float, warm: bool) -> None:
    """Multiplies with short pauses are more than half use, though less at full clock: it ramps up
    after 3 us. With long pauses they are 40 %, and it stays."""
    ramp, hold = _Ramp(TRN2), 64 / 2.4
    time = 0.0
    while time < 3300:
        time = ramp.run(time, hold) + pause * hold
    took = ramp.run(time, hold) - time
    assert took == pytest.approx(hold if warm else 2 * hold)


def test_bfloat16_matmul_is_a_column_a_cycle() -> None:
    _, timeline = matmuls(100, "bfloat16")
    assert timeline.start[100] - timeline.start[99] == pytest.approx(512 / 2.4, rel=1e-6)


def test_the_clock_ramps_again_after_an_idle_gap() -> None:
    script = Script()
    a, b, c = script.sbuf((128, 128)), script.sbuf((128, 512)), script.psum((128, 512))
    script.memset(a)
    script.memset(b)
    for _ in range(20):
        script.matmul(c, a, b)
    wide = script.sbuf((128, 8192))
    script.memset(wide)
    script.tensor_tensor(b, wide[:, 0:512], b)
    slow = script.sbuf((128, 8192))
    script.core.issue("reciprocal", Engine.vector, (wide,), (slow,))
    script.tensor_tensor(b, slow[:, 0:512], b)
    script.matmul(c, a, b)
    timeline = run(script)
    last = len(timeline.records) - 1
    warm = timeline.held[21] - timeline.start[21]
    assert timeline.start[last] - timeline.held[21] > 3000
    assert timeline.held[last] - timeline.start[last] - 197 == pytest.approx(2 * warm, rel=0.01)


# -- DMA ------------------------------------------------------------------------------------------


def load(shape: tuple[int, int], mode: dge_mode, dtype: str = "bfloat16") -> Timeline:
    script = Script()
    tile = script.sbuf(shape, dtype)
    script.dma(tile, script.hbm(shape, dtype), mode=mode)
    return run(script)


def test_static_load_of_32_kib_by_one_engine() -> None:
    """DOV: 1,416 ns of data, 2,738 ns from the trigger to the consumer."""
    timeline = load((4, 4096), dge_mode.none)
    assert timeline.done[0] == pytest.approx(2738, rel=0.02)
    assert timeline.dma_busy_ns[0] == pytest.approx(1416, rel=0.02)


def test_software_load_of_32_kib_by_all_engines() -> None:
    """DOV: 870 ns of descriptors, then 1,500 ns from the trigger to the consumer; 97 ns of data on
    each engine."""
    timeline = load((128, 128), dge_mode.swdge)
    assert timeline.dma_busy_ns[0] / 16 == pytest.approx(97, rel=0.03)
    assert timeline.done[0] - 870 == pytest.approx(1500, rel=0.15)


@pytest.mark.parametrize(
    ("mode", "interval"), [(dge_mode.none, 154), (dge_mode.hwdge, 600), (dge_mode.swdge, 603)]
)
def test_triggers_are_issued_one_after_the_other(mode: dge_mode, interval: float) -> None:
    script = Script()
    source = script.hbm((128, 64))
    for _ in range(10):
        script.dma(script.sbuf((128, 64)), source, mode=mode)
    timeline = run(script)
    assert timeline.start == pytest.approx([k * interval for k in range(10)])


def test_large_loads_reach_the_bandwidth() -> None:
    """368 GB/s at 8 KiB a partition."""
    script = Script()
    source = script.hbm((128, 2048))
    for _ in range(20):
        script.dma(script.sbuf((128, 2048)), source)
    timeline = run(script)
    rate = 128 * 8192 / (timeline.done[19] - timeline.done[18])
    assert rate == pytest.approx(368, rel=0.02)


def test_small_pieces_cost_each() -> None:
    """A column of a row-major matrix: 8 pieces of 4 bytes on each of 16 engines, 7 ns each."""
    script = Script()
    script.dma(script.sbuf((128, 1)), script.hbm((128, 512))[:, 0:1])
    assert run(script).dma_busy_ns[0] == pytest.approx(16 * (8 * 7 + 7))


def test_scalar_triggers_beside_sync() -> None:
    script = Script()
    source = script.hbm((128, 64))
    for k in range(10):
        trigger = Engine.scalar if k % 2 else Engine.sync
        script.dma(script.sbuf((128, 64)), source, mode=dge_mode.hwdge, trigger=trigger)
    timeline = run(script)
    assert max(timeline.start) == pytest.approx(4 * 600)
    assert "Scalar DMA" in {use.engine for use in script.report().engines}


def test_casts_and_gathers_choose_their_mode() -> None:
    script = Script()
    source = script.hbm((512, 64), "float32")
    script.dma(script.sbuf((128, 64), "bfloat16"), source[0:128])
    script.dma(script.sbuf((128, 64)), source, indirect="vector", rows=128)
    script.dma(script.sbuf((128, 64)), source[0:128])
    lanes = [what.lane for what in run(script).costs]
    engines = [use.engine for use in script.report().engines]
    assert engines == ["GpSimd", "Sync"] and lanes[0] == lanes[2] != lanes[1]
    held = run(script).held
    assert held[0] == pytest.approx(154) and held[2] == pytest.approx(154 + 600)


def test_transpose_takes_longer_than_a_copy() -> None:
    def busy(source: NkiTensor, script: Script) -> float:
        tile = script.sbuf((128, 128), "bfloat16")
        script.core.issue("dma_transpose", Engine.dma, (source,), (tile,), None)
        return run(script).dma_busy_ns[0] - 16 * 7

    script, other = Script(), Script()
    assert busy(script.hbm((128, 128), "bfloat16"), script) == pytest.approx(32768 / 23 / 0.9)
    assert busy(other.sbuf((128, 128), "bfloat16"), other) == pytest.approx(32768 / 23 / 0.5)


def test_no_hardware_descriptors_on_trn1() -> None:
    script = Script("trn1")
    for _ in range(2):
        script.dma(script.sbuf((128, 64)), script.hbm((128, 64)))
    assert TRN1.dma.hardware is None
    assert run(script).start[1] == TRN1.dma.static.issue_ns


# -- order ----------------------------------------------------------------------------------------


def test_engines_overlap() -> None:
    script = Script()
    a, b, c, d = (script.sbuf((128, 4096)) for _ in range(4))
    script.memset(a)
    script.memset(b)
    script.activation(c, a)
    script.tensor_tensor(d, b, b)
    timeline = run(script)
    assert timeline.start[3] < timeline.done[2] and timeline.start[2] < timeline.done[3]


def test_later_work_fills_a_wait() -> None:
    """The compiler may reorder: Vector does not idle for Scalar while it has something else."""
    script = Script()
    a, b, c, d, e = (script.sbuf((128, 4096)) for _ in range(5))
    script.memset(a)
    script.activation(b, a)
    script.copy(c, b)
    script.tensor_tensor(d, e, e)
    timeline = run(script)
    assert timeline.start[3] < timeline.start[2]


def test_no_reorder_keeps_the_order_of_an_engine() -> None:
    script = Script()
    a, b, c, d, e = (script.sbuf((128, 4096)) for _ in range(5))
    script.memset(a)
    script.activation(b, a)
    script.core.no_reorder += 1
    script.copy(c, b)
    script.tensor_tensor(d, e, e)
    script.core.no_reorder -= 1
    timeline = run(script)
    assert timeline.start[3] >= timeline.held[2]


def test_a_schedule_orders_and_a_circle_is_refused() -> None:
    script = Script()
    tiles = [script.sbuf((128, 64), name=name) for name in ("first", "second")]
    for tile in tiles:
        script.memset(tile)
    timeline = run(script, (("first", ("second",)),))
    assert timeline.start[0] >= timeline.done[1]
    with pytest.raises(NkiValidationError, match="circle"):
        run(script, (("first", ("second",)), ("second", ("first",))))


def test_double_buffers_hide_the_loads() -> None:
    """A DMA into a buffer waits until its last reader is done; with two buffers it hides."""

    def latency(buffers: int) -> float:
        script = Script()
        source = script.hbm((128, 4096))
        tiles = [script.sbuf((128, 4096)) for _ in range(buffers)]
        result = script.sbuf((128, 4096))
        for k in range(20):
            tile = tiles[k % buffers]
            script.dma(tile, source)
            script.activation(result, tile)
        return script.report().latency_us

    # Alone: about 6.7 us of load after 3.7 us of activation, each in turn.
    one, two = latency(1), latency(2)
    assert one > 20 * (3.7 + 6.5) and two < 20 * 7.0


# -- cores ----------------------------------------------------------------------------------------


def two_cores(work: Any, members: tuple[int, ...] = (0, 1)) -> tuple[Script, Timeline]:
    script = Script(cores=2, checks="off")
    for core in script.program.cores:
        script.core = core
        work(script, core.index)
        script.core.issue(
            "core_barrier", Engine.gpsimd, (), (), None, meeting="here", members=members
        )
    return script, run(script)


def test_a_barrier_waits_for_the_slower_core() -> None:
    def work(script: Script, index: int) -> None:
        tile = script.sbuf((128, 512 if index else 8192))
        script.core.issue("memset", Engine.gpsimd, (), (tile,), None, value=1.0)

    _, timeline = two_cores(work)
    first, second = timeline.done[1], timeline.done[3]
    assert first == second > timeline.held[0] > timeline.held[2]
    assert first == pytest.approx(timeline.held[0] + TRN2.sync.barrier_ns)


def test_two_cores_share_the_stack() -> None:
    """2 x 368 GB/s do not come out of a stack of 716."""

    def busy(cores: int) -> float:
        script = Script(cores=cores, checks="off")
        for core in script.program.cores:
            script.core = core
            for _ in range(20):
                script.dma(script.sbuf((128, 2048)), script.hbm((128, 2048)))
        return run(script).end_ns

    alone, together = busy(1), busy(2)
    assert together / alone == pytest.approx(2 * 368 / 716, rel=0.02)
