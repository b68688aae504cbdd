"""K and V of the new tokens: from the projection to the forms that attention and the cache take."""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.cache_update_tkg import NewTokens, fill_rows, row_tiles
from tkg.backends.neuron.fp8_codes import common_nan, rounded_dtype
from tkg.backends.neuron.layout import FP8_MAX, PMAX, scalar_column
from tkg.backends.neuron.matrices import add_terms
from tkg.backends.neuron.qk_norm_tkg import qk_norm_tkg
from tkg.backends.neuron.rope_tkg import rope_terms, rope_tkg


class NewHeads(nl.NKIObject):
    """The new tokens' K and V, made when `make` is called: attention over the cache needs them
    late, so their weights may come behind the first of the cache; or those of V alone, where K has
    been projected and `make_keys` was called before. `kv`: where they are projected to. `new`: the
    `NewTokens`, whose tiles are there from the beginning."""

    def __init__(self, sbm, sizes, K, transposed, kv):
        self.sbm = sbm
        self.sizes = sizes
        self.dtype = K.dtype
        parts, size = sizes.parts, sizes.size
        shape = (size, sizes.kv_heads * parts, sizes.rows)
        self.kv = kv
        self.keys_made = False
        rounded = rounded_dtype(K.dtype)
        self.tiles = [sbm.stack(shape, rounded, name) for name in ("k_new", "v_new")]
        self.k_rows = []
        if not transposed:
            self.k_rows = row_tiles(sbm, shape, rounded, "k_rows", sizes.tokens)
        self.v_rows = row_tiles(sbm, shape, rounded, "v_rows", sizes.tokens)
        k_rows, v_rows = self.k_rows, self.v_rows
        if rounded != K.dtype:
            k_rows = [tile.view(K.dtype) for tile in k_rows]
            v_rows = [tile.view(K.dtype) for tile in v_rows]
        heads = [sizes.heads_of(tile) for tile in self.tiles]
        self.new = NewTokens(heads[0], heads[1], k_rows, v_rows, parts)

    def prepare(self, projection, norms, tables, scales):
        """What `make` works with: the `QkvProjection`, `HeadNorms`, RoPE's tables or None, and the
        cache's scales or None."""
        self.projection = projection
        self.norms = norms
        self.tables = tables
        self.scales = scales
        self.at_once = turns_at_once(tables, norms)
        if self.at_once and scales != None:
            # RoPE scales K on its way.
            self.tables = tables.scaled(self.sbm, scales[0], "rope_k")

    def make(self, after=()):
        """Project, normalise, rotate, scale and round. Two cores exchange their sums once the
        instructions `after` are done."""
        sizes = self.sizes
        heads = sizes.kv_heads * sizes.parts
        first = sizes.q_heads * sizes.parts
        if self.keys_made:
            self.projection.project(self.kv[:, heads:, :], first + heads, "v", after)
        else:
            self.projection.project(self.kv, first, "kv", after)
            self.make_keys()
        self.round(1, self.kv[:, heads:, :])
        if rounded_dtype(self.dtype) != self.dtype:
            common_nan(self.sbm, self.tiles[1], "nan_codes")

    def make_keys(self):
        """K, where it has been projected."""
        sbm, sizes = self.sbm, self.sizes
        heads = sizes.kv_heads * sizes.parts
        self.keys_made = True
        k = self.kv[:, 0:heads, :]
        norm_and_rotate(sbm, k, self.norms, None if self.at_once else self.tables, sizes.parts)
        if self.at_once:
            limit = 0.0 if self.scales == None else FP8_MAX
            whole = self.tiles[0].reshape((sizes.size, 1, heads * sizes.rows))
            terms = rope_terms(sbm, k, self.tables, "rope_k")[0]
            add_terms(terms, (slice(0, sizes.size),), whole, 1.0, limit)
        else:
            self.round(0, k)
        if rounded_dtype(self.dtype) != self.dtype:
            common_nan(sbm, self.tiles[0], "nan_codes")

    def round(self, i, t):
        """Tile i of K and V = t, scaled and rounded."""
        if self.scales == None:
            nisa.tensor_copy(self.tiles[i], t, engine=nisa.engine.gpsimd)
            return
        column = self.scales[i][0 : t.shape[0], :]
        nisa.tensor_scalar(t, t, nl.multiply, column, op1=nl.minimum, operand1=FP8_MAX)
        nisa.tensor_scalar(self.tiles[i], t, nl.maximum, -FP8_MAX)

    def make_rows(self):
        """The same as rows, which only the cache takes: after all that attention waits for."""
        sbm, sizes = self.sbm, self.sizes
        heads = sizes.kv_heads * sizes.parts
        # What is rounded, but in float32, which the tensor engine turns.
        nisa.tensor_copy(self.kv[:, 0:heads, :], self.tiles[0], engine=nisa.engine.gpsimd)
        nisa.tensor_copy(self.kv[:, heads:, :], self.tiles[1], engine=nisa.engine.gpsimd)
        if len(self.k_rows) > 0:
            fill_rows(self.k_rows, self.kv[:, 0:heads, :])
        fill_rows(self.v_rows, self.kv[:, heads:, :])
        if rounded_dtype(self.dtype) != self.dtype:
            for tile in self.v_rows + self.k_rows:
                common_nan(sbm, tile, "nan_codes")


def turns_at_once(tables, norms):
    """Whether RoPE's terms (`rope_terms`) may be added up right into what takes the heads."""
    return tables != None and tables.same != None and norms.after == None


class HeadNorms(nl.NKIObject):
    """The norms of Q's or K's heads before and after RoPE, each (weight or None, eps), or None."""

    def __init__(self, name, before, after):
        self.name = name
        self.before = before
        self.after = after


def norm_and_rotate(sbm, t, norms, tables, parts):
    """The norms and RoPE, in place, of t [d/parts, heads*parts, R]."""
    if norms.before != None:
        qk_norm_tkg(sbm, t, norms.before[0], norms.before[1], f"pre_rope_{norms.name}", parts)
    if tables != None:
        rope_tkg(sbm, t, tables, f"rope_{norms.name}")
    if norms.after != None:
        qk_norm_tkg(sbm, t, norms.after[0], norms.after[1], f"post_rope_{norms.name}", parts)


def load_cache_scales(sbm, k_scale, v_scale):
    """The scales of an FP8 cache, [1, 1] or [128, 1] in HBM, as columns [128, 1]; None without."""
    if k_scale == None:
        return None
    columns = sbm.ring(2, (PMAX, 1), nl.float32, "cache.scale")
    scalar_column(columns[0], k_scale)
    scalar_column(columns[1], v_scale)
    return columns
