"""Addresses in SBUF, chosen by the kernel: a stack for what lives in scopes, a heap for the rest.

The stack grows from the first byte of a partition upwards, the heap from the last one downwards.
Closing a scope gives back all that was put on the stack since it was opened; the bytes are used
again at once, so a tile must not be touched after its scope. A tile occupies the same bytes in each
of its partitions and starts at partition 0.
"""

import nki.language as nl

SMALL = 4096  # bytes of scratch that may stay for as long as a kernel runs
ALIGNMENT = 64  # bytes; tiles start on multiples of it


class SbufManager(nl.NKIObject):
    """Hands out SBUF tiles between two byte offsets of a partition.

    `first` and `last` (exclusive) are byte offsets in a partition; by default all that a kernel may
    use. `high_water` is the largest number of bytes a partition in use at any time.
    """

    def __init__(self, first=0, last=None):
        end = nl.tile_size.sbuf_fmax_bytes if last == None else last
        self.first = -(-first // ALIGNMENT) * ALIGNMENT
        self.last = end // ALIGNMENT * ALIGNMENT
        self.top = self.first
        self.scopes = []
        self.heap = []
        self.high_water = 0

    def open_scope(self, name):
        """Everything put on the stack from now on goes when this scope is closed."""
        self.scopes.append((name, self.top))

    def close_scope(self, keep=0):
        """Give back the innermost scope's tiles, unless they are at most `keep` bytes: those last
        as long as the scope around it, so that no later tile has to wait for their last use."""
        assert len(self.scopes) > 0, "SbufManager: close_scope: no scope is open"
        name, top = self.scopes.pop()
        if self.top - top > keep:
            self.top = top

    def stack(self, shape, dtype, name):
        """An uninitialised tile on the stack; it lives until the innermost scope is closed."""
        size = row_bytes(shape, dtype)
        floor = self.lowest_heap_byte()
        assert self.top + size <= floor, (
            f"SbufManager: {name}: {size} bytes a partition asked, {floor - self.top} left;\n"
            + self.table()
        )
        tile = nl.ndarray(shape, dtype, buffer=nl.sbuf, name=name, address=(0, self.top))
        self.top = self.top + size
        self.note_use()
        return tile

    def ring(self, count, shape, dtype, name):
        """`count` stack tiles to be used in turn, so that one is filled while another is read."""
        return [self.stack(shape, dtype, f"{name}.{i}") for i in range(count)]

    def allocate(self, shape, dtype, name):
        """An uninitialised tile on the heap; it lives until `free`. Takes the highest gap."""
        size = row_bytes(shape, dtype)
        end = self.last
        place = -1
        # The heap is kept from the highest address to the lowest.
        for i in range(len(self.heap)):
            other = self.heap[i]
            if end - (other[0] + other[1]) >= size:
                place = i
                break
            end = other[0]
        if place < 0:
            place = len(self.heap)
        assert end - size >= self.top, (
            f"SbufManager: {name}: {size} bytes a partition asked, {end - self.top} left;\n"
            + self.table()
        )
        tile = nl.ndarray(shape, dtype, buffer=nl.sbuf, name=name, address=(0, end - size))
        self.heap.insert(place, (end - size, size, name))
        self.note_use()
        return tile

    def allocate_ring(self, count, shape, dtype, name):
        """`count` heap tiles to be used in turn; `free_ring` gives them back."""
        return [self.allocate(shape, dtype, f"{name}.{i}") for i in range(count)]

    def free_ring(self, name):
        """Give back the tiles of `allocate_ring`, if there are any."""
        self.heap = [entry for entry in self.heap if not entry[2].startswith(name + ".")]

    def room(self):
        """Bytes a partition between the stack and the heap."""
        return self.lowest_heap_byte() - self.top

    def free(self, name):
        """Give back a heap tile, by its name."""
        for i in range(len(self.heap)):
            if self.heap[i][2] == name:
                self.heap.pop(i)
                return
        raise AssertionError(f"SbufManager: free: no heap tile is named {name}")

    def lowest_heap_byte(self):
        """Where the heap ends and the stack may not pass."""
        return self.heap[-1][0] if len(self.heap) > 0 else self.last

    def note_use(self):
        """Keep the high-water mark."""
        used = self.top - self.first
        for entry in self.heap:
            used = used + entry[1]
        self.high_water = max(self.high_water, used)

    def table(self):
        """What is in use, for messages: open scopes and heap tiles."""
        lines = [f"  stack: bytes {self.first} to {self.top}"]
        for name, top in self.scopes:
            lines.append(f"    scope {name} from {top}")
        for offset, size, name in self.heap:
            lines.append(f"  heap: {name}: bytes {offset} to {offset + size}")
        return "\n".join(lines)


def row_bytes(shape, dtype):
    """Bytes of a tile in one partition, rounded up to the alignment."""
    size = bytes_of(dtype)
    for extent in shape[1:]:
        size = size * extent
    return -(-size // ALIGNMENT) * ALIGNMENT


def bytes_of(dtype):
    """Bytes of one element."""
    if dtype == nl.float32 or dtype == nl.int32 or dtype == nl.uint32 or dtype == nl.tfloat32:
        return 4
    if dtype == nl.bfloat16 or dtype == nl.float16 or dtype == nl.int16 or dtype == nl.uint16:
        return 2
    return 1
