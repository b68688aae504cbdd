"""What the NKI kernels cannot run, of what is legal: the limits of the machine and of the
kernels."""

from __future__ import annotations

from tkg.contract.block import BlockCall
from tkg.contract.cost import Call

PMAX = 128
MAX_ROWS = 512  # float32 sums of one partition in a PSUM bank
MAX_SLOTS = 1 << 24  # float32 holds every slot number below this
MAX_PARTS = 4  # of a head, one after the other on the partitions


def unsupported(call: Call) -> list[str]:
    """Every reason why this backend cannot run a legal call, in the words of the drop-in call."""
    if isinstance(call, BlockCall):
        return _block_reasons(call)
    return _projection_reasons(call)


def _projection_reasons(call: Call) -> list[str]:
    assert not isinstance(call, BlockCall)
    _, batch, _, tokens = call.attention.shape
    found = []
    if batch * tokens > MAX_ROWS:
        found.append(f"B * S is at most {MAX_ROWS}; this is {batch * tokens}")
    hidden = call.projection.weight.shape[1]
    if hidden % call.lnc:
        found.append(f"H must be a multiple of lnc = {call.lnc}; this is {hidden}")
    return found


def splits(d_head: int) -> bool:
    """Whether a head can be cut into a few equal parts that fit the partitions."""
    return any(d_head % parts == 0 and d_head // parts <= PMAX for parts in range(1, MAX_PARTS + 1))


def _block_reasons(call: BlockCall) -> list[str]:
    block, cache = call.block, call.cache
    heads = block.heads
    found = []
    features = 0 if block.out is None else block.out.weight.shape[1]
    if features % block.lnc:
        found.append(f"the output's H must be a multiple of lnc = {block.lnc}; this is {features}")
    if block.lnc == 2 and block.hidden % 2:
        found.append(f"on two cores X's H must be even; this is {block.hidden}")
    rows = call.batch * call.tokens
    if not splits(heads.d_head):
        found.append(f"d_head is n * m with n up to {MAX_PARTS} and m up to {PMAX}; "
                     f"this is {heads.d_head}")  # fmt: skip
    if rows > MAX_ROWS:
        found.append(f"B * S_tkg is at most {MAX_ROWS}; this is {rows}")
    if call.tokens > PMAX:
        found.append(f"S_tkg is at most {PMAX}; this is {call.tokens}")
    geometry = cache.geometry
    slots = geometry.outer * geometry.length * geometry.kv_heads
    if slots >= MAX_SLOTS:
        found.append(f"the slots of all KV heads are at most {MAX_SLOTS - 1}; this is {slots}")
    return found
