"""The shortest complete program: one decode step of one attention layer, with NumPy."""

import numpy as np

import tkg

rng = np.random.default_rng(0)
batch, hidden, q_heads, kv_heads, d_head, capacity = 2, 256, 8, 2, 32, 64
position = np.array([[5], [9]], np.int32)  # tokens that each row's cache holds already


def weights(*shape: int) -> np.ndarray:
    return rng.standard_normal(shape, np.float32) / np.float32(shape[0] ** 0.5)


K_cache = rng.standard_normal((batch, kv_heads, capacity, d_head), np.float32)
V_cache = rng.standard_normal((batch, kv_heads, capacity, d_head), np.float32)
cos, sin = tkg.rope_tables(position, d_head)

out, K_out, V_out = tkg.attention_block_tkg(
    X=rng.standard_normal((batch, 1, hidden), np.float32),
    rmsnorm_X_enabled=True,
    rmsnorm_X_eps=1e-5,
    W_qkv=weights(hidden, (q_heads + 2 * kv_heads) * d_head),
    cos=cos,
    sin=sin,
    K_cache=K_cache,
    V_cache=V_cache,
    pos_ids=position,
    update_cache=True,
    kv_cache_update_idx=position.astype(np.uint32),
    W_out=weights(q_heads * d_head, hidden),
)
print("out", out.shape, out.dtype, "caches updated in place:", K_out is K_cache)
