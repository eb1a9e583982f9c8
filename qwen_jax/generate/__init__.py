"""Text out of a model: choosing tokens (sample) and decoding over a KV cache (decode).

The folder is itself the public function: `qwen_jax.generate(...)` is generate.decode.generate,
whichever of the two was imported first.
"""

import sys
import types


class _Generate(types.ModuleType):
    def __call__(self, *arguments, **settings):
        from qwen_jax.generate.decode import generate

        return generate(*arguments, **settings)


sys.modules[__name__].__class__ = _Generate
