"""What L2 still has of what earlier launches of a call read and wrote.

That it is of 192 MB, filled by reading and by writing, is published (hiascend.com, Ascend C best practices:
"L2 Cache Tiling", "Setting a Proper L2 CacheMode"). That the least recently touched goes first, and that
nothing goes sooner, is a guess. What a launch reads several times itself counts once, as if L2 kept it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

from .sampled import Ran

PAGE = 1 << 20  # bytes that come and go together
SLICES = 64  # of a launch, one after the other
Page = tuple[str, int]


def found(launches: Sequence[Ran], nbytes: float) -> list[float]:
    """Bytes that each launch reads first and need not have of the memory; L2 holds so many."""
    kept: OrderedDict[Page, None] = OrderedDict()
    return [there(launch, kept, int(nbytes) // PAGE) for launch in launches]


def there(launch: Ran, kept: OrderedDict[Page, None], most: int) -> float:
    """The same of one launch; what it touches is kept then, up to `most` pages."""
    seen: dict[Page, bool] = {}
    for page in pages(launch):
        seen.setdefault(page, page in kept)
        kept[page] = None
        kept.move_to_end(page)
        if len(kept) > most:
            kept.popitem(last=False)
    total = 0.0
    for name, nbytes in launch.first().items():
        own = [was for (of, _), was in seen.items() if of == name]
        total += nbytes * sum(own) / max(len(own), 1)
    return total


def pages(launch: Ran) -> Iterator[Page]:
    """In about the order in which all blocks touch them: in each slice what lies between their ends."""
    traces = [trace.touched for trace in launch.outcome.traces.values()]
    for i in range(SLICES):
        ends: dict[str, tuple[int, int]] = {}
        for touched in traces:
            for name, low, high in touched[len(touched) * i // SLICES : len(touched) * (i + 1) // SLICES]:
                first, last = ends.get(name, (low, high))
                ends[name] = min(first, low), max(last, high)
        for name, (low, high) in ends.items():
            for page in range(low // PAGE, -(-high // PAGE)):
                yield name, page
