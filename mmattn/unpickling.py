"""Reads pickles that are nothing but arrays, and calls nothing else that a file names."""

import pickle
from typing import Any

# All that a pickled NumPy array is made of; older and newer NumPy have it under different names.
ARRAYS = frozenset(
    {
        ('numpy', 'ndarray'),
        ('numpy', 'dtype'),
        ('numpy.core.multiarray', '_reconstruct'),
        ('numpy._core.multiarray', '_reconstruct'),
    }
)


class ArrayUnpickler(pickle.Unpickler):
    """Reads NumPy arrays in Python's own containers; `find_class` raises UnpicklingError for the
    rest."""

    allowed = ARRAYS

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self.allowed:
            raise pickle.UnpicklingError(
                f'it asks for {module}.{name}; allowed: NumPy arrays in dicts, lists and tuples'
            )
        return super().find_class(module, name)
