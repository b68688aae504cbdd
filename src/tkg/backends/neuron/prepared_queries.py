"""The queries as the tensor engine multiplies them with the cache."""

import nki.isa as nisa
import nki.language as nl

from tkg.backends.neuron.layout import factors, head_parts
from tkg.backends.neuron.matrices import add_terms, apply_matrices, selection
from tkg.backends.neuron.queries import Queries
from tkg.backends.neuron.rope_tkg import rope_terms
from tkg.backends.neuron.sbuf_manager import bytes_of


def parity_picks(manager, reader, at_once=False):
    """[[matrices that select the even or the odd elements of one part of a head]] for each of those
    that K^T comes in, where it comes in pairs; else None. [] where the queries will be turned
    `at_once` into those."""
    if not reader.paired:
        return None
    if at_once:
        return []
    parts = head_parts(reader.d_head)
    picks = []
    for k in range(reader.key_parts):
        for half in range(2):
            name = f"q.pick.{k}.{half}"
            picks.append(
                [
                    selection(manager, reader.d_head, half, f"{name}.{i}", (i, k, parts))
                    for i in range(parts)
                ]
            )
    return picks


def prepare_queries(manager, q, scale, picks, new, dtypes, tables=None):
    """The scaled queries in the dtypes that multiply the cache, and in the parts its keys have
    (`picks`: of `parity_picks`). `dtypes`: (of X, of the cache). `tables`: RoPE's, where q is yet
    to be turned; only of heads that are not in parts."""
    size, columns, rows = q.shape
    parts = new.parts
    heads = columns // parts
    shape = (heads, new.k.shape[2], new.k.shape[3])
    kinds = (nl.float32 if bytes_of(dtypes[1]) == 4 else dtypes[0], dtypes[1])
    if tables != None:
        terms, turned = rope_terms(manager, q, tables, "rope_q")
        keyed = None
        if picks != None:
            halves = (slice(0, size, 2), slice(1, size, 2))
            keyed = turned_queries(manager, terms, halves, scale, kinds, shape, "q.keyed")
        whole = turned_queries(manager, terms, (slice(0, size),), scale, kinds, shape, "q.turned")
        queries = Queries(whole, whole if keyed == None else keyed, kinds[0], new.k, new.v)
        queries.turned = turned
        return queries
    if parts == 1:
        flat = [q.reshape((size, heads * rows))]
    else:
        flat = manager.ring(parts, (size, heads * rows), nl.float32, "q.part")
        for i in range(parts):
            part = q.reshape((size, heads, parts, rows))[:, :, i, :]
            nisa.tensor_copy(flat[i].reshape(part.shape), part)
    whole = []
    for i in range(parts):
        scaled = manager.stack(flat[i].shape, kinds[0], f"q.{i}.scaled")
        nisa.tensor_scalar(scaled, flat[i], nl.multiply, scale)
        whole.append(query_parts(manager, scaled, kinds[1], shape, f"q.{i}"))
    if picks == None:
        return Queries(whole, whole, kinds[0], new.k, new.v)
    keyed = []
    for k in range(len(picks)):
        scaled = apply_matrices(manager, picks[k], flat, f"q.picked.{k}", kinds[0], scale)
        keyed.append(query_parts(manager, scaled, kinds[1], shape, f"q.keyed.{k}"))
    return Queries(whole, keyed, kinds[0], new.k, new.v)


def turned_queries(manager, terms, cuts, scale, kinds, shape, name):
    """`query_parts` of each of the `cuts` of a head, slices, from RoPE's terms."""
    width = cuts[0]
    size = len(range(width.start, width.stop, 1 if width.step == None else width.step))
    scaled = manager.stack((size, len(cuts), terms[0][0].shape[1]), kinds[0], name)
    add_terms(terms, cuts, scaled, scale)
    parts = []
    for i in range(len(cuts)):
        parts.append(query_parts(manager, scaled[:, i, :], kinds[1], shape, f"{name}.{i}"))
    return parts


def query_parts(manager, scaled, dtype, shape, name):
    """Tiles [d, N, B, S] that sum to the scaled queries [d, N*B*S], which multiply `dtype`."""
    parts = factors(manager, scaled, dtype, name)
    return [part.reshape((scaled.shape[0],) + shape) for part in parts]
