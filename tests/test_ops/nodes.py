"""What a result was made by: the names of the nodes of autograd's graph."""

from mmattn import ops

OURS = {op.name().removeprefix('mmattn::') + 'Backward' for op in ops.decompositions}


def nodes(y):
    seen, stack = set(), [y.grad_fn]
    while stack:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            stack += [n for n, _ in node.next_functions]
    return {n.name() for n in seen}
