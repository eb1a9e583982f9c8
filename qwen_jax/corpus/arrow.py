"""pyarrow, imported at its first use, so that --help works without the `data` extra.

`from qwen_jax.corpus.arrow import pa, pc, pq` stands for pyarrow, pyarrow.compute and
pyarrow.parquet. Annotations that name them are not evaluated: such modules begin with
`from __future__ import annotations`.
"""

import importlib
from typing import TYPE_CHECKING, Any

from qwen_jax.errors import DataError


class _Lazy:
    def __init__(self, name: str):
        self._name = name

    def __getattr__(self, attribute: str) -> Any:
        try:
            module = importlib.import_module(self._name)
        except ImportError as error:
            raise DataError(
                "the corpus pipeline needs pyarrow.",
                "qwen_jax.corpus",
                "pip install 'qwen_jax[data]'.",
            ) from error
        value = getattr(module, attribute)
        setattr(self, attribute, value)
        return value


if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pc: Any  # it makes its functions when it is imported
else:
    pa, pc, pq = map(_Lazy, ("pyarrow", "pyarrow.compute", "pyarrow.parquet"))
