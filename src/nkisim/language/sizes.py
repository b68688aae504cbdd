"""Sizes of the hardware (`nl.tile_size`), and questions about a buffer."""

from __future__ import annotations

import os
from typing import Any

from .. import running
from ..chips import CHIPS, Chip
from ..enums import ON_CHIP, PRIVATE_HBM, PSUM, SBUF, SHARED_HBM
from ..kernel import options
from ..tensor import NKIObject


class TileSize(NKIObject):
    """Sizes and limits of the core: of the running kernel's chip, else of the target that the
    present options name (TS; the two alignments are not published: 4 bytes, assumed)."""

    pmax = 128
    psum_fmax = 512
    psum_bank_fmax = 512
    psum_bank_fmax_bytes = 2048
    gemm_stationary_fmax = 128
    gemm_moving_fmax = 512
    bn_stats_fmax = 512
    psum_min_align = 4
    sbuf_min_align = 4

    @property
    def _chip(self) -> Chip:
        core = running.core
        return CHIPS[options().target] if core is None else core.chip

    @property
    def psum_num_banks(self) -> int:
        """8; 7 where transposing DMAs keep the last bank (an environment variable, trn2 on)."""
        chip = self._chip
        kept = os.environ.get("NKI_DMA_TRANSPOSE_AS_PE_TRANSPOSE", "").lower() == "true"
        banks = chip.psum_partition_bytes // chip.psum_bank_bytes
        return banks - 1 if kept and chip.generation >= 3 else banks

    @property
    def sbuf_fmax_bytes(self) -> int:
        """Usable bytes of one SBUF partition."""
        return self._chip.sbuf_partition_bytes

    total_available_sbuf_size = sbuf_fmax_bytes

    @property
    def sbuf_fmax(self) -> int:
        """Usable float32 elements of one SBUF partition."""
        return self.sbuf_fmax_bytes // 4

    @property
    def sbuf_size_bytes(self) -> int:
        """Usable bytes of SBUF, all partitions together."""
        return self.sbuf_fmax_bytes * self._chip.partitions


tile_size = TileSize()


def is_hbm(buffer: Any) -> bool:
    return buffer is SHARED_HBM or buffer is PRIVATE_HBM


def is_on_chip(buffer: Any) -> bool:
    return buffer in ON_CHIP


def is_psum(buffer: Any) -> bool:
    return buffer is PSUM


def is_sbuf(buffer: Any) -> bool:
    return buffer is SBUF
