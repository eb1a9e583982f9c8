"""The caches of compiled programs: that of tests, and that of chat, generate and serve."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental.compilation_cache import compilation_cache

from qwen_jax.parallel import compilation_cache as programs
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


@pytest.fixture
def no_folder():
    """As for users: JAX_COMPILATION_CACHE_DIR is not set."""
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", None)
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


def test_enable_keeps_programs_in_the_users_cache(tmp_path, monkeypatch, no_folder):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "a"))
    folder = programs.enable()
    assert folder is not None and folder.is_dir() and folder.parent == tmp_path / "a/qwen_jax"
    assert jax.config.jax_compilation_cache_dir == str(folder)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert programs.enable() == folder and not (tmp_path / "b").exists()


def test_enable_does_without_a_folder_that_cannot_be_made(tmp_path, monkeypatch, no_folder):
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert programs.enable() is None and jax.config.jax_compilation_cache_dir is None
