"""The cache of compiled programs that tests share."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from tests.helpers.compilation import clean_cache


@pytest.fixture
def cache(tmp_path):
    """A cache folder with one program."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    compilation_cache.reset_cache()
    jax.jit(lambda x: x * 3.25 + 1.75)(jnp.ones(5)).block_until_ready()
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()
    return tmp_path


def test_clean_cache_deletes_only_truncated_programs(cache):
    (good, *_) = programs = sorted(cache.rglob("*-cache"))
    bad = good.with_name("killed-cache")
    bad.write_bytes(good.read_bytes()[:-20])
    clean_cache(cache)
    assert sorted(cache.rglob("*-cache")) == programs


def test_clean_cache_deletes_a_large_cache(cache):
    clean_cache(cache, limit=10)
    assert not cache.exists()
