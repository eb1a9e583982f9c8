"""Training that starts from weights."""

import dataclasses
import pathlib
import shutil

import jax
import numpy as np
import pytest

from qwen_jax import sizes
from qwen_jax.attention_config import AttentionVariant, ContextExtension, RopeScaling
from qwen_jax.checkpoint.checkpointer import Checkpointer
from qwen_jax.config import MeshConfig, OptimizerConfig
from qwen_jax.errors import CheckpointError, ConfigError
from qwen_jax.model.lora import LoRAConfig
from qwen_jax.model.spec import init_params, param_specs
from qwen_jax.parallel.mesh import make_mesh
from qwen_jax.pretrained.from_run import save_run
from qwen_jax.pretrained.huggingface import load_pretrained, open_pretrained, save_pretrained
from qwen_jax.pretrained.start import Pin, weights_of
from qwen_jax.train.attempts import inputs
from qwen_jax.train.optimizer import make_optimizer
from qwen_jax.train.state import abstract_state, make_state
from qwen_jax.types import TrainState


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    folder = tmp_path_factory.mktemp("released") / "qwen"
    params = init_params(sizes.TINY, jax.random.key(3))
    save_pretrained(folder, sizes.TINY, params, param_dtype="bfloat16")
    return folder, params


def test_weights_of_gives_the_weights_on_the_mesh_in_the_training_dtype(released):
    folder, params = released
    optimizer = make_optimizer(OptimizerConfig(), 10)
    specs, mesh = param_specs(sizes.TINY), make_mesh(MeshConfig(fsdp=4, tensor=2))
    abstract = abstract_state(specs, optimizer, mesh, dtype="float32")
    like = dataclasses.replace(sizes.TINY, context_length=8, dropout=0.1)
    initial = weights_of(folder, like)
    state = make_state(0, specs, optimizer, abstract, params=initial(abstract.params))
    assert int(state.step) == 0
    for found, saved, want in zip(
        *map(jax.tree.leaves, (state.params, params, abstract.params)), strict=True
    ):
        assert found.sharding == want.sharding and found.dtype == np.float32
        assert np.array_equal(found, saved.astype("bfloat16").astype("float32"))
    moments = jax.tree.leaves(state.opt_state)
    assert len(moments) > 2 * 15 and not any(np.any(leaf) for leaf in moments)


class _Run:
    """The config of a run that starts from a folder."""

    lora, restart_from_scratch = LoRAConfig(), False

    def __init__(self, run_dir):
        self.run_dir = str(run_dir)

    def started(self, pin):
        """Makes the run one that has saved, with the inputs of `pin`."""
        folder = pathlib.Path(self.run_dir)
        (folder / "checkpoints/1").mkdir(parents=True, exist_ok=True)
        inputs.write(folder, pin.inputs())


@pytest.fixture
def base(tmp_path):
    """A run folder with steps 1 and 2 of different weights."""
    params = jax.jit(init_params, static_argnums=0)(sizes.TINY, jax.random.key(0))
    save_run(tmp_path / "base", sizes.TINY, params)
    return tmp_path / "base"


def add_step(base, step, scale):
    """Saves a later step, as a run that goes on does."""
    _, params = load_pretrained(base)
    state = TrainState(np.int32(step), jax.tree.map(lambda x: x * scale, params), ())
    checkpoints = Checkpointer(base / "checkpoints", keep=9)
    checkpoints.save(step, state, {})
    checkpoints.close()


def test_pin_reads_one_step_in_all_loads_and_attempts(base, tmp_path):
    config = _Run(tmp_path / "run")
    pin = Pin("init_from", base, config)
    assert pin.inputs() == () and pin.open(open_pretrained).step == 0
    add_step(base, 5, 2.0)
    assert pin.open(open_pretrained).step == 0
    assert Pin("init_from", base, config).open(open_pretrained).step == 5  # nothing was saved
    config.started(pin)
    resumed = Pin("init_from", base, config)
    assert resumed.open(open_pretrained).step == 0 and resumed.inputs() == pin.inputs()
    moved = shutil.copytree(base, tmp_path / "moved")
    assert Pin("init_from", moved, config).inputs()[0].same(pin.inputs()[0])
    assert Pin("init_from", moved, config).inputs()[0].path == str(moved)


@pytest.mark.parametrize("once", [False, True])
def test_pin_refuses_other_weights_at_the_same_path(base, tmp_path, once):
    config = _Run(tmp_path / "run")
    pin = Pin("init_from", base, config, once=once)
    pin.open(open_pretrained)
    config.started(pin)
    add_step(base, 5, 2.0)
    shutil.rmtree(base / "checkpoints/0")
    if once:  # only the first start reads them
        assert Pin("init_from", base, config, once=True).inputs() == pin.inputs()
    else:
        with pytest.raises(CheckpointError, match="step 0 of this run is missing") as caught:
            Pin("init_from", base, config)
        assert caught.value.where == f"--init_from={base}"
    (base / "checkpoints/5").rename(base / "checkpoints/0")
    if not once:
        with pytest.raises(ConfigError, match="the contents of .*base step 0 have changed"):
            Pin("init_from", base, config)
    with pytest.raises(ConfigError, match="was .*base step 0', now .*other step 0"):
        Pin("init_from", shutil.copytree(base, tmp_path / "other"), config, once=once)


def test_pin_identifies_released_weights(released, tmp_path):
    folder = shutil.copytree(released[0], tmp_path / "qwen")
    config = _Run(tmp_path / "run")
    pin = Pin("init_from", folder, config)
    pin.open(open_pretrained, param_dtype="float32")
    config.started(pin)
    assert Pin("init_from", shutil.copytree(folder, tmp_path / "moved"), config).inputs()
    other = jax.tree.map(lambda x: x * 2, released[1])
    save_pretrained(folder, sizes.TINY, other, param_dtype="bfloat16")
    with pytest.raises(ConfigError, match="the contents of .*qwen have changed"):
        Pin("init_from", folder, config)


def test_pin_of_an_older_run_takes_what_is_there(base, tmp_path):
    config = _Run(tmp_path / "run")
    (tmp_path / "run/checkpoints/1").mkdir(parents=True)
    assert Pin("init_from", base, config).inputs()[0].step == 0
    assert Pin("init_from", base, config, once=True).inputs() == ()


def test_weights_of_rejects_another_architecture_with_the_flags_to_set(released):
    config = dataclasses.replace(sizes.TINY, num_kv_heads=2, rope_base=1e6)
    with pytest.raises(ConfigError) as error:
        weights_of(released[0], config)
    assert error.value.fix == (
        "set --model.num_kv_heads=4 (not 2), --model.rope_base=10000.0 (not 1000000.0)."
    )
    scaled = AttentionVariant(rope_scaling=RopeScaling("linear", 2.0))
    extension = ContextExtension(dynamic_ntk=False)
    with pytest.raises(ConfigError, match="--model.variant.rope_scaling.kind=none .not linear"):
        weights_of(
            released[0], dataclasses.replace(sizes.TINY, variant=scaled, extension=extension)
        )
