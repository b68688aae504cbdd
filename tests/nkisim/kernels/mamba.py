"""The selective scan of Mamba in three versions: y = sum over states of C * s, where
s[t] = exp(delta[t] A) s[t-1] + delta[t] u[t] B[t]. Channels lie on the partitions.

delta, u (batch, channels, time), A (channels, states), B, C (batch, states, time), all float32;
channels are a multiple of 128.
"""

# pyright: reportMissingImports=false

import nki
import nki.isa as nisa
import nki.language as nl

from tests.nkisim.kernels.tiles import load, result_like

P = nl.tile_size.pmax


def fresh(like):
    return nl.ndarray(like.shape, dtype=like.dtype, buffer=nl.sbuf)


def one_state(delta, u, a, b, c, before):
    """(C * s, s) of one state for a tile of channels; `before` is s just before the tile's start,
    0.0 or a column."""
    decay = fresh(delta)
    nisa.activation(dst=decay, op=nl.exp, data=delta, scale=a)
    drive = fresh(delta)
    nisa.tensor_tensor(dst=drive, data1=delta, data2=u, op=nl.multiply)
    nisa.tensor_tensor(
        dst=drive, data1=drive, data2=nl.broadcast_to(b, delta.shape), op=nl.multiply
    )
    state = fresh(delta)
    nisa.tensor_tensor_scan(
        dst=state, data0=decay, data1=drive, initial=before, op0=nl.multiply, op1=nl.add
    )
    out = fresh(delta)
    nisa.tensor_tensor(dst=out, data1=state, data2=nl.broadcast_to(c, delta.shape), op=nl.multiply)
    return out, state


@nki.jit
def scan(delta, u, a, b, c):
    """Version 1: everything is loaded for every state."""
    batches, channels, time = delta.shape
    result = result_like(delta)
    for batch in range(batches):
        for first in range(0, channels, P):
            rows = slice(first, first + P)
            total = nl.zeros((P, time), dtype=delta.dtype)
            for n in range(a.shape[1]):
                out, _ = one_state(
                    load(delta[batch, rows, 0:time]),
                    load(u[batch, rows, 0:time]),
                    load(a[rows, n : n + 1]),
                    load(b[batch, n : n + 1, 0:time]),
                    load(c[batch, n : n + 1, 0:time]),
                    0.0,
                )
                nisa.tensor_tensor(dst=total, data1=total, data2=out, op=nl.add)
            nisa.dma_copy(dst=result[batch, rows, 0:time], src=total)
    return result


@nki.jit
def scan_loads_hoisted(delta, u, a, b, c):
    """Version 2: delta and u are loaded once for all states."""
    batches, channels, time = delta.shape
    result = result_like(delta)
    for batch in range(batches):
        for first in range(0, channels, P):
            rows = slice(first, first + P)
            delta_tile = load(delta[batch, rows, 0:time])
            u_tile = load(u[batch, rows, 0:time])
            total = nl.zeros((P, time), dtype=delta.dtype)
            for n in range(a.shape[1]):
                out, _ = one_state(
                    delta_tile,
                    u_tile,
                    load(a[rows, n : n + 1]),
                    load(b[batch, n : n + 1, 0:time]),
                    load(c[batch, n : n + 1, 0:time]),
                    0.0,
                )
                nisa.tensor_tensor(dst=total, data1=total, data2=out, op=nl.add)
            nisa.dma_copy(dst=result[batch, rows, 0:time], src=total)
    return result


@nki.jit
def scan_time_tiled(delta, u, a, b, c, span=512):
    """Version 3: time in tiles of `span`; each state's last value starts the next tile."""
    batches, channels, time = delta.shape
    assert time % span == 0
    result = result_like(delta)
    for batch in range(batches):
        for first in range(0, channels, P):
            rows = slice(first, first + P)
            delta_tile = load(delta[batch, rows, 0:time])
            u_tile = load(u[batch, rows, 0:time])
            total = nl.zeros((P, time), dtype=delta.dtype)
            for n in range(a.shape[1]):
                a_tile = load(a[rows, n : n + 1])
                last = nl.zeros((P, 1), dtype=delta.dtype)
                for start in range(0, time, span):
                    here = slice(start, start + span)
                    out, state = one_state(
                        delta_tile[:, here],
                        u_tile[:, here],
                        a_tile,
                        load(b[batch, n : n + 1, here]),
                        load(c[batch, n : n + 1, here]),
                        last,
                    )
                    nisa.tensor_copy(dst=last, src=state[:, span - 1 : span])
                    nisa.tensor_tensor(
                        dst=total[:, here], data1=total[:, here], data2=out, op=nl.add
                    )
            nisa.dma_copy(dst=result[batch, rows, 0:time], src=total)
    return result
