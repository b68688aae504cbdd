"""The attention block inside a kernel of your own: hidden states stay on chip.

    x  in SBUF  ->  attention_block_tkg  ->  out in SBUF;  y = x + out, on chip

A decoder layer that goes on with its MLP would use y where it lies. Here y is written to HBM, so
that it can be compared with the reference. Runs on the simulator nkisim, or on a NeuronCore where
AWS's NKI is installed.
"""

import ml_dtypes
import numpy as np

import tkg
from tkg.backends.neuron import launch

launch.simulated()  # from here on `import nki` is the simulator, unless AWS's NKI is installed

import nki  # noqa: E402
import nki.isa as nisa  # noqa: E402
import nki.language as nl  # noqa: E402

from tkg.backends.neuron.attention_block_tkg import attention_block_tkg  # noqa: E402
from tkg.backends.neuron.sbuf_manager import SbufManager  # noqa: E402

PMAX = 128  # partitions of SBUF


@nki.jit
def fused_layer(X, gamma, eps, W_qkv, cos, sin, K_cache, V_cache, pos_ids, slots, W_out):
    """(X + block(X), K_cache, V_cache) on one core, for X [B, S, H] in HBM with H a multiple of
    128; the caches are updated in place. The rest is named as in docs/contract.md."""
    batch, tokens, hidden = X.shape
    width = hidden // PMAX
    sbm = SbufManager()
    # Feature h = p*width + j is on partition p, in column j.
    x = sbm.allocate((PMAX, batch, tokens, width), X.dtype, "layer.x")
    nisa.dma_copy(x, X.reshape_dim(2, (PMAX, width)).permute((2, 0, 1, 3)))
    out, K_out, V_out = attention_block_tkg(
        x,
        W_qkv,
        K_cache,
        V_cache,
        rmsnorm_X_enabled=True,
        rmsnorm_X_eps=eps,
        rmsnorm_X_gamma=gamma,
        cos=cos,
        sin=sin,
        pos_ids=pos_ids,
        update_cache=True,
        kv_cache_update_idx=slots,
        W_out=W_out,
        transposed_out=True,
        out_in_sb=True,
        sbm=sbm,  # so that it leaves x alone
    )
    # The block's transposed output has the features where x has them: [128, width, B*S].
    y = out.reshape((PMAX, width, batch, tokens)).permute((0, 2, 3, 1))
    nisa.tensor_tensor(x, x, y, nl.add)
    result = nl.ndarray(X.shape, X.dtype, buffer=nl.shared_hbm, name="y")
    nisa.dma_copy(result.reshape_dim(2, (PMAX, width)).permute((2, 0, 1, 3)), x)
    sbm.free("output_projection.out")
    sbm.free("layer.x")
    return result, K_out, V_out


def layer_inputs(batch=2, tokens=1, hidden=512, q_heads=4, d_head=64, capacity=256):
    """Arguments of `fused_layer`: one KV head, caches that hold 100, 99, ... tokens."""
    rng = np.random.default_rng(0)

    def normal(*shape, size=1.0):
        return (size * rng.standard_normal(shape)).astype(ml_dtypes.bfloat16)

    start = 100 - np.arange(batch, dtype=np.int32)[:, None]
    positions = start + np.arange(tokens, dtype=np.int32)
    cos, sin = tkg.rope_tables(positions, d_head)
    return {
        "X": normal(batch, tokens, hidden),
        "gamma": normal(1, hidden),
        "eps": 1e-5,
        "W_qkv": normal(hidden, (q_heads + 2) * d_head, size=hidden**-0.5),
        "cos": cos,
        "sin": sin,
        "K_cache": normal(batch, 1, capacity, d_head),
        "V_cache": normal(batch, 1, capacity, d_head),
        "pos_ids": positions,
        "slots": start,
        "W_out": normal(q_heads * d_head, hidden, size=(q_heads * d_head) ** -0.5),
    }


def block_arguments(layer):
    """The same layer as keyword arguments of `tkg.attention_block_tkg`, with its own caches."""
    names = {"gamma": "rmsnorm_X_gamma", "eps": "rmsnorm_X_eps", "slots": "kv_cache_update_idx"}
    call = {names.get(name, name): value for name, value in layer.items()}
    call["K_cache"], call["V_cache"] = layer["K_cache"].copy(), layer["V_cache"].copy()
    return call | {"rmsnorm_X_enabled": True, "update_cache": True}


def main():
    layer = layer_inputs()
    block = block_arguments(layer)
    y, K, V = fused_layer(**layer)  # its caches are updated in place
    out, K_right, V_right = tkg.attention_block_tkg(**block, backend="reference")
    right = layer["X"].astype(np.float64) + out.astype(np.float64).reshape(y.shape)
    for what, got, expected in (("y", y, right), ("K", K, K_right), ("V", V, V_right)):
        expected = expected.astype(np.float64)
        error = np.abs(got.astype(np.float64) - expected).max() / np.abs(expected).max()
        print(f"{what}: largest error {error:.2%} of the largest value")
        assert error < 2**-6, f"{what} is wrong"  # bfloat16 has 8 bits


if __name__ == "__main__":
    main()
