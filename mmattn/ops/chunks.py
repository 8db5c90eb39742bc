"""How DRTAM cuts an axis into chunks."""

import functools


@functools.lru_cache(1024)
def windows(length: int, chunks: int) -> tuple[tuple[int, int], ...]:
    """The chunks of an axis of this length, as a tuple of (begin, end).

    They are those of `torch.chunk` (7 into 3 is 3 + 3 + 1) wherever it makes as many as asked. Else
    they are as even as possible (4 into 3 is 2 + 1 + 1), and on an axis shorter than `chunks` they
    overlap as in adaptive pooling: never is a chunk empty.
    """
    size = -(-length // chunks)
    if -(-length // size) == chunks:
        return tuple((i * size, min((i + 1) * size, length)) for i in range(chunks))
    if length < chunks:
        return tuple((i * length // chunks, -(-(i + 1) * length // chunks)) for i in range(chunks))
    size, longer = divmod(length, chunks)
    edges = [i * size + min(i, longer) for i in range(chunks + 1)]
    return tuple(zip(edges[:-1], edges[1:], strict=True))
