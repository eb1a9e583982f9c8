"""Finds weights with NaN or infinity while they are read, chunk by chunk."""

from collections.abc import Callable

import numpy as np

from qwen_jax.errors import CheckpointError
from qwen_jax.pretrained.arrays import Index
from qwen_jax.pretrained.tensors import bits

_EXPONENT = {"float32": 0x7F800000, "bfloat16": 0x7F80, "float16": 0x7C00}  # all ones: not finite
_BLOCK = 1 << 18  # elements checked at a time, which fit in the cache
_SHOWN = 5

Read = Callable[[str, Index], np.ndarray]


class FiniteCheck:
    """Collects the names of the weights that are not finite.

    Args:
      where: the folder or argument that the error names.
      allow: whether to accept them; nothing is then checked.
    """

    def __init__(self, where: str, *, allow: bool = False):
        self._where, self._allow = where, allow
        self._found: dict[str, None] = {}  # in the order of reading

    def watch(self, read: Read) -> Read:
        """Returns `read`, (path of a weight, index) -> array, which also checks what it returns."""
        if self._allow:
            return read

        def checked(path: str, index: Index) -> np.ndarray:
            array = read(path, index)
            if "layers" not in path.split("."):
                self._found |= {} if is_finite(array) else {path: None}
                return array
            for layer, part in enumerate(array, index[0].start):  # stacked over layers
                if not is_finite(part):
                    self._found[f"{path}[{layer}]"] = None
            return array

        return checked

    def check(self) -> None:
        """Raises CheckpointError if a weight that was read has NaN or infinity."""
        if not self._found:
            return
        names = list(self._found)
        more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
        raise CheckpointError(
            f"weights with NaN or infinity: {', '.join(names[:_SHOWN])}{more}.",
            self._where,
            "use an earlier checkpoint, or download it again. chat, generate, serve and convert "
            "accept such weights with --allow_nonfinite.",
        )


def is_finite(array: np.ndarray) -> bool:
    """Returns whether an array of float32, bfloat16 or float16 has no NaN and no infinity."""
    values = bits(array).reshape(-1)
    exponent = values.dtype.type(_EXPONENT[array.dtype.name])
    scratch = np.empty(min(_BLOCK, values.size), values.dtype)
    for start in range(0, values.size, _BLOCK):
        block = values[start : start + _BLOCK]
        if np.bitwise_and(block, exponent, out=scratch[: block.size]).max() == exponent:
            return False
    return True
