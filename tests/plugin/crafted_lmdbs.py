"""LMDBs as an enemy would write them."""

import random
import struct

PAGE = 4096
# In the first two pages: the record of the main tree, the last page's number, and how new it is.
_TREE, _LAST_PAGE = 88, 136
_TRANSACTION = 144


def mutated(content: bytes, places: random.Random) -> bytes:
    """A `data.mdb` with fields of its pages, nodes and trees changed, pages swapped, or cut off."""
    changed = bytearray(content)
    pages = len(changed) // PAGE
    numbers = [b"\xff" * 8, bytes(8), b"\0\x30" * 4, b"\x7f" * 8, places.randbytes(8)]
    numbers.append((pages + places.randrange(9)).to_bytes(8, "little"))
    for _ in range(places.choice([1, 1, 1, 2, 4])):
        page = places.randrange(pages) * PAGE
        kind = places.randrange(7)
        if kind == 0:
            changed[page + places.randrange(64)] ^= 1 << places.randrange(8)
        elif kind == 1:
            size, place = places.choice([1, 2, 4, 8]), page + places.randrange(0, 160, 2)
            changed[place : place + size] = places.choice(numbers)[:size]
        elif kind == 2:  # The page's first node.
            node = page + int.from_bytes(changed[page + 16 : page + 18], "little") % (PAGE - 8)
            changed[node + places.randrange(8)] = places.choice([0, 1, 2, 4, 8, 0x30, 0x7F, 0xFF])
        elif kind == 3:  # What kind of page it is.
            changed[page + 10] = places.choice([0x01, 0x02, 0x04, 0x08, 0x12, 0x20, 0x22, 0x40])
        elif kind == 4:
            other = places.randrange(pages) * PAGE
            first, second = changed[page : page + PAGE], changed[other : other + PAGE]
            changed[page : page + PAGE], changed[other : other + PAGE] = second, first
        elif kind == 5:  # Where its room begins and ends.
            changed[page + 12 : page + 16] = places.choice([b"\xff" * 4, bytes(4), b"\0\x10\x10\0"])
        else:  # The records of all trees.
            place = places.choice([0, PAGE]) + 16 + places.randrange(0, 136, 4)
            changed[place : place + 4] = places.choice(numbers)[:4]
    return bytes(changed[: places.randrange(len(changed))] if places.random() < 0.1 else changed)


def without_end(content: bytes) -> bytes:
    """A `data.mdb` of which thirty branches each lead to the next twice: 2^30 times as many."""
    levels = 30
    changed = bytearray(content)
    start = max((0, PAGE), key=lambda page: changed[page + _TRANSACTION])
    pad, flags, _, *counts, root = struct.unpack_from("<IHHQQQQQ", changed, start + _TREE)
    first = len(changed) // PAGE
    for level in range(levels):
        child = first + level + 1 if level < levels - 1 else root
        page = bytearray(PAGE)
        nodes = []
        for number, key in enumerate((b"", b"zz")):
            nodes.append(PAGE - 16 * (number + 1))
            struct.pack_into("<IHH2s", page, nodes[-1], child, 0, len(key), key)
        struct.pack_into("<QHHHHHH", page, 0, first + level, 0, 1, 20, nodes[-1], *nodes)
        changed += page
    tree = (pad, flags, levels + 1, *counts, first)
    struct.pack_into("<IHHQQQQQ", changed, start + _TREE, *tree)
    struct.pack_into("<Q", changed, start + _LAST_PAGE, first + levels - 1)
    return bytes(changed)
