"""Random numbers: XORWOW generators, one a lane, in the Vector and the GpSimd engine.

The recurrence is Marsaglia's ("Xorshift RNGs", 2003): five words and a counter. NKI names the
generator and the six words of its state, not how `set_rng_seed` spreads one seed over the lanes, so
the numbers are reproducible here but are not those of hardware.
"""

from __future__ import annotations

import numpy as np

from .. import rules, running
from ..core import Core
from ..dtypes import INTEGERS, NUMPY
from ..enums import engine as Engine
from ..operands import value, write_bits
from ..record import NkiInstruction
from ..tensor import NkiTensor
from . import operators

_LANES, _WORDS = 128, 6
_COUNTER_STEP = np.uint32(362437)


def rng(dst: NkiTensor, engine: Engine = Engine.vector, name: str | None = None) -> NkiInstruction:
    """Fill an integer tile with random bits, the low ones of 32 an element, on the Vector or GpSimd
    engine."""
    core = running.current()
    if core.checks:
        rules.tiles("rng", dst=dst)
        rules.dtype_in("rng", INTEGERS - {"bool"}, dst=dst)
        allowed = (Engine.vector, Engine.gpsimd) if core.chip.generation >= 3 else (Engine.vector,)
        rules.reach("rng", rules.choose("rng", engine, allowed), dst=dst)
    engine = Engine.vector if engine is Engine.unknown else engine
    bits = _draw(_state(core, engine), *rules.elements(dst))
    write_bits(dst, bits.astype(f"u{dst.itemsize}").view(NUMPY[dst.dtype]))
    return core.issue("rng", engine, (), (dst,), name)


def dropout(
    dst: NkiTensor, data: NkiTensor, prob: float | NkiTensor, name: str | None = None
) -> NkiInstruction:
    """dst = data, or 0 with probability `prob` (a number or a column), on the Vector engine. What
    is kept is not scaled."""
    core = running.current()
    if core.checks:
        rules.tiles("dropout", dst=dst, data=data)
        rules.same_elements("dropout", dst=dst, data=data)
        rules.same_dtype("dropout", dst=dst, data=data)
        floats = ("float32",) if data.dtype in INTEGERS else operators.FLOATS
        operators.scalar("dropout", "prob", prob, data, floats)
    kept = value("dropout", "data", data)
    chance = operators.column("dropout", "prob", prob, data)
    draw = _draw(_state(core, Engine.vector), *rules.elements(data)).reshape(kept.shape)
    drop = draw < np.asarray(chance, np.float64) * 2.0**32
    write_bits(dst, np.where(drop, NUMPY[dst.dtype].type(0), kept))
    reads = (data, *operators.arguments(prob))
    return core.issue("dropout", Engine.vector, reads, (dst,), name)


def set_rng_seed(src_seeds: NkiTensor, name: str | None = None) -> NkiInstruction:
    """Seed the Vector engine's generators from a (1, 1) tile of 32 bits."""
    core = running.current()
    if core.checks:
        rules.tiles("set_rng_seed", src_seeds=src_seeds)
        if src_seeds.size != 1 or src_seeds.itemsize != 4:
            rules.refuse(
                "set_rng_seed", "src_seeds", f"got {src_seeds!r}", "a (1, 1) tile of 32 bits"
            )
    seed = int(operators.bits("set_rng_seed", "src_seeds", src_seeds).reshape(-1)[0])
    core.registers["vector generator"] = _spread(seed)
    return core.issue("set_rng_seed", Engine.vector, (src_seeds,), (), name)


def rand_set_state(
    src_seeds: NkiTensor, engine: Engine = Engine.gpsimd, name: str | None = None
) -> NkiInstruction:
    """Set the generators' state, six uint32 words a lane, of the GpSimd engine."""
    core = running.current()
    if core.checks:
        _state_legal("rand_set_state", "src_seeds", src_seeds, engine)
    state = _state(core, Engine.gpsimd)
    words = value("rand_set_state", "src_seeds", src_seeds)
    state[: len(words)] = words.reshape(len(words), _WORDS)
    return core.issue("rand_set_state", Engine.gpsimd, (src_seeds,), (), name)


def rand_get_state(
    dst: NkiTensor, engine: Engine = Engine.gpsimd, name: str | None = None
) -> NkiInstruction:
    """dst = the generators' state, six uint32 words a lane, of the GpSimd engine."""
    core = running.current()
    if core.checks:
        _state_legal("rand_get_state", "dst", dst, engine)
    write_bits(dst, _state(core, Engine.gpsimd)[: dst.shape[0]])
    return core.issue("rand_get_state", Engine.gpsimd, (), (dst,), name)


def _state_legal(word: str, argument: str, tensor: NkiTensor, engine: Engine) -> None:
    if running.current().chip.generation < 3:
        rules.refuse(word, "engine", "a NeuronCore-v2 has no access to the state", "set_rng_seed")
    if engine is Engine.vector:
        rules.only_gen4(f"{word}: engine=vector")
    rules.choose(word, engine, (Engine.gpsimd,))
    operand = {argument: tensor}
    rules.tiles(word, **operand)
    rules.in_sbuf(word, **operand)
    rules.dtype_in(word, ("uint32",), **operand)
    if tensor.ndim != 2 or tensor.shape[1] != _WORDS:
        rules.refuse(word, argument, f"shape {list(tensor.shape)}", f"(partitions, {_WORDS})")


def _state(core: Core, engine: Engine) -> np.ndarray:
    """The engine's generators; before any seed they hold the one of seed 0."""
    key = f"{engine.name} generator"
    state = core.registers.get(key)
    if state is None:
        state = core.registers[key] = _spread(0)
    return state


def _spread(seed: int) -> np.ndarray:
    """States of all lanes from one seed."""
    words = np.random.SeedSequence(seed).generate_state(_LANES * _WORDS, np.uint32)
    return words.reshape(_LANES, _WORDS)


def _draw(state: np.ndarray, lanes: int, count: int) -> np.ndarray:
    """(lanes, count) random words; the lanes' states move on."""
    x, y, z, w, v, counter = (np.array(column) for column in state[:lanes].T)
    result = np.empty((count, lanes), np.uint32)
    for row in result:
        t = x ^ (x >> np.uint32(2))
        x, y, z, w = y, z, w, v
        v = (v ^ (v << np.uint32(4))) ^ (t ^ (t << np.uint32(1)))
        counter += _COUNTER_STEP
        np.add(v, counter, row)
    state[:lanes] = np.stack((x, y, z, w, v, counter), axis=1)
    return np.ascontiguousarray(result.T)
