"""Where keys lie: in rows of a cache that each sequence has to itself, or in pages of a pool that all share.

    contiguous   row r of sequence b is cache[b, 0, r]
    paged        row r of sequence b is pool[table[b, r // PAGE], 0, r % PAGE]

Tiles of a paged cache begin where pages do, so each lies in one. The last one is moved back to end with the
last valid row, as without pages; what it would have of rows before its page are zeros, which bulk copies give
outside an array, and they are hidden. So is a page whose number is none of the pool: it is read as zeros, and
whoever reads it spoils its result, with NaN, lest nobody notices.
"""

from typing import Any

import tilelang.language as T

PAGE, LOG_PAGE = 64, 6  # rows of a page, and their binary logarithm
MOST = 2**31 - 1
NAN = T.float32(float("nan"))


def origin(table: Any, begin: Any) -> Any:
    """Where the first tile begins, of keys from `begin` on."""
    return begin if table is None else begin // PAGE * PAGE


def settled(table: Any, size: Any) -> Any:
    """A size that is not negative, worked out once: TileLang writes expressions wherever they are used, and
    those of pages in 64 bits as well.
    """
    return size if table is None else T.call_extern("int32", "max", size, 0)


def part_of(key: Any, end: Any) -> Any:
    """Which page of its sequence a key is in; those from `end` on count as the last one."""
    return T.shift_right(T.max(T.min(key, end - 1), 0), LOG_PAGE)


def page(table: Any, b: Any, part: Any) -> Any:
    """The number of a sequence's page in the pool, -1 or MOST for those that no pool can have."""
    return T.cast(T.max(T.min(table[b, part], T.int64(MOST)), T.int64(-1)), "int32")


def slot_of(table: Any, b: Any, key: Any, end: Any) -> Any:
    """The first index of the tile of keys from `key` on."""
    return b if table is None else page(table, b, part_of(key, end))


def line_of(table: Any, key: Any, at: Any, end: Any) -> Any:
    """The row in its slot at which that tile begins, after it was moved back to key `at`."""
    return at if table is None else at - T.shift_left(part_of(key, end), LOG_PAGE)


def first_seen(table: Any, first: Any, begin: Any) -> Any:
    """The first key of a tile from `first` on that counts: one in a page may have padding before it."""
    return first if table is None else T.max(first, begin)


def partly(table: Any, first: Any, keys: int, begin: Any, old: Any) -> Any:
    """Whether some keys of the tile are hidden from some row: new ones, or what lies before `begin`."""
    late = first + keys > old
    return late if table is None else T.Or(late, first < begin)


def nothing(table: Any, total: Any) -> Any:
    """The factor of a row that saw no key: 0, but NaN where it read what is no page."""
    return 0 if table is None else total  # 0 or NaN


def outside(number: Any, pages: Any) -> Any:
    """1 where that is no page of the pool, else 0."""
    return T.if_then_else(T.Or(number < 0, number >= pages), 1, 0)


def is_page(table: Any, slot: Any, pages: Any) -> Any:
    """Whether a slot may be written: it is a sequence's own, or a page of the pool."""
    return True if table is None else T.And(slot >= 0, slot < pages)


def checked(table: Any, value: Any, b: Any, key: Any, end: Any, pages: Any) -> Any:
    """The value, or NaN where the key's page is none of the pool."""
    if table is None:
        return value
    return T.if_then_else(is_page(table, slot_of(table, b, key, end), pages), value, NAN)
