"""Functions of the author's that bring a backward pass of their own."""

import sys

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from coordinator.compiler.places import is_authors_file


def functions_with_own_gradient(loss: Tensor) -> list[str]:
    """The names of the `torch.autograd.Function` classes in a loss's history, sorted.

    Those of torch and of this project are left out.
    """
    found: set[str] = set()
    waiting, seen = [loss.grad_fn], set()
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if isinstance(node, BackwardCFunction) and _is_authors(kind := node._forward_cls):
            found.add(kind.__qualname__.rpartition(".")[2])
        waiting += [following for following, _ in node.next_functions]
    return sorted(found)


def _is_authors(kind: type) -> bool:
    file = getattr(sys.modules.get(kind.__module__), "__file__", None)
    return file is None or is_authors_file(file)
