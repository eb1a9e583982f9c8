"""Settings of all tests: 8 virtual CPU devices; implicit dtype and rank promotion are errors.

helpers/compilation.py says how they compile, helpers/time_by_folder.py what they take.
"""

import gc
import os
import pathlib

os.environ.setdefault("JAX_PLATFORMS", "cpu")
if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
    os.environ["XLA_FLAGS"] = (
        os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
        # Each worker has one core: a tenth less to do than with programs split for many threads.
        " --xla_cpu_parallel_codegen_split_count=1"
    )

from tests.helpers import compilation, time_by_folder  # noqa: E402

compilation.set_environment()

import jax  # noqa: E402  (after the environment is set)
import numpy as np  # noqa: E402
import pytest  # noqa: E402

from qwen_jax.data import shards  # noqa: E402
from qwen_jax.data.document import Document  # noqa: E402
from qwen_jax.parallel.cpu import virtual_devices  # noqa: E402
from qwen_jax.tokenizer.bpe import Tokenizer  # noqa: E402

virtual_devices.reserve_threads()
# Tracing makes many objects, and what is imported by now stays: collecting it again takes time.
gc.freeze()
gc.set_threshold(100_000, 20, 50)
jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent


def pytest_configure(config) -> None:
    if not hasattr(config, "workerinput"):  # in the process that collects what workers report
        config.pluginmanager.register(time_by_folder)
        compilation.clean_cache()


@pytest.fixture(scope="session", autouse=True)
def no_fsync():
    """Disables fsync: no test simulates a power failure, so none needs to wait for the disk."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def toy_text(tmp_path_factory) -> pathlib.Path:
    """Shards of 200 documents of four words, with byte tokens, for tests of restarts."""
    folder = tmp_path_factory.mktemp("text") / "words"
    rng = np.random.default_rng(0)
    documents = [
        Document(str(i), " ".join(rng.choice(["a", "bc", "def", "gh"], 50))) for i in range(200)
    ]
    shards.write(documents, folder, Tokenizer({bytes([byte]): byte for byte in range(256)}))
    return folder / "train"


@pytest.fixture(scope="session")
def shared() -> pathlib.Path:
    """The folder of reference outputs and public data, next to the repository."""
    folder = pathlib.Path(os.environ.get("QWEN_JAX_SHARED", REPOSITORY.parent / "shared"))
    if not (folder / "reference").is_dir():
        pytest.skip(f"no reference data at {folder}; set QWEN_JAX_SHARED to its folder")
    return folder
