"""Imports pyarrow on first use, because --help must work without the `data` extra.

`from qwen_jax.corpus.arrow import pa, pc, pq` provides pyarrow, pyarrow.compute and
pyarrow.parquet.
Modules that use these names in annotations need `from __future__ import annotations`, because
evaluating an annotation would import pyarrow.
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
                "pyarrow is not installed.",
                "qwen_jax.corpus",
                "pip install 'qwen_jax[data]'.",
            ) from error
        value = getattr(module, attribute)
        setattr(self, attribute, value)
        return value


if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

    pc: Any  # pyarrow.compute creates its functions at import time
else:
    pa, pc, pq = map(_Lazy, ("pyarrow", "pyarrow.compute", "pyarrow.parquet"))
