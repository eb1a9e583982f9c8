"""Initial weights by NumPy: `spec.init_params` compiles a random generator for every weight."""

import jax
import numpy as np


def initial(specs, *, seed: int = 0):
    """Returns float32 weights on the device, with the distributions that training starts from.

    Args:
      specs: a tree of Specs, such as that of model.spec.param_specs.
    """
    rng = np.random.default_rng(seed)

    def of(spec):
        if spec.init == "normal":
            return np.float32(spec.std) * rng.standard_normal(spec.shape, np.float32)
        return np.full(spec.shape, {"zeros": 0.0, "ones": 1.0}[spec.init], np.float32)

    return jax.device_put(jax.tree.map(of, specs))
