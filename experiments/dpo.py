"""Direct preference optimisation: from comparisons, without a reward model. Rafailov et al. 2023.

Not in the report; for those who want its 3.2 in one stage. It learns from the same files as the
reward model, and starts from the SFT weights, which are the reference as well.

    python -m experiments.dpo --init_from=runs/chat --run_dir=runs/dpo \\
        --data.pairs=a.json,b.jsonl.gz --data.eval_pairs=held_out.json
    ... --lora.rank=16 --optimizer.peak_learning_rate=5e-5   # adapters, as in experiments.sft
"""

import dataclasses
import functools
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import NamedSharding

from experiments.pretrain import ended_by_signal
from experiments.reward_model import PairData, for_epochs, make_rows
from qwen_jax.align.dpo import ComparedPairs, answer_log_probs, make_objective
from qwen_jax.cli import flags
from qwen_jax.config import MeshConfig, OptimizerConfig, TrainConfig, option
from qwen_jax.data.batches import fill_up, stack_trees
from qwen_jax.data.chat.pairs import PairRows
from qwen_jax.errors import ConfigError
from qwen_jax.model.lora import LoRAConfig
from qwen_jax.model.spec import abstract, param_specs
from qwen_jax.parallel.batch_rows import on_host
from qwen_jax.parallel.mesh import check_batch, make_mesh
from qwen_jax.parallel.sharding import DEFAULT_RULES, use_layout
from qwen_jax.pretrained.overrides import ModelOverrides
from qwen_jax.pretrained.start import start, start_of
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.train.evaluation import make_means
from qwen_jax.train.supervised_rows import held_out_batches, train_on
from qwen_jax.types import Params
from qwen_jax.utils.jsonl import names_of


@dataclasses.dataclass(frozen=True)
class Config:
    """One run."""

    train: TrainConfig
    init_from: str = option("", "the SFT model's folder: start and reference")
    tokenizer: str | None = option(None, "a .tiktoken file; none: the one in init_from")
    data: PairData = PairData()
    beta: float = option(0.1, "how far the policy may leave the reference: larger is nearer")
    model: ModelOverrides = ModelOverrides()  # all else of the model is that of init_from
    optimizer: OptimizerConfig = OptimizerConfig()
    lora: LoRAConfig = LoRAConfig()  # adapters beside the weights; off without a rank
    mesh: MeshConfig = MeshConfig()
    run_dir: str = option("runs/dpo", "checkpoints, metrics and the report page")

    def __post_init__(self):
        if not self.beta > 0:
            raise ConfigError(f"beta={self.beta} is not positive.", "--beta", "0.1 is usual.")


RECIPE = Config(
    data=PairData(epochs=1.0, context_length=2048),  # ours: as the reward model
    beta=0.1,  # ours: Rafailov et al. 2023
    model=ModelOverrides(remat="dots"),  # ours: keeps matrix products
    optimizer=OptimizerConfig(
        peak_learning_rate=5e-7,
        schedule="constant",
        warmup_steps=150,  # ours: the paper's
        beta1=0.9,
        beta2=0.95,
        epsilon=1e-8,  # ours: as everywhere in the report
        weight_decay=0.0,
        clip_norm=1.0,
    ),  # ours
    train=TrainConfig(
        num_steps=1,  # of data.epochs
        batch_size=64,  # ours: the paper's
        log_every=10,
        eval_every=500,
        save_every=500,
    ),
)  # ours
SMOKE = dataclasses.replace(
    RECIPE,
    data=PairData(epochs=None),
    model=ModelOverrides(compute_dtype="float32"),
    optimizer=dataclasses.replace(RECIPE.optimizer, peak_learning_rate=1e-3, warmup_steps=0),
    train=TrainConfig(
        num_steps=30, batch_size=8, log_every=10, eval_every=15, save_every=15, eval_batches=4
    ),
    run_dir="runs/dpo_smoke",
)
RECIPES = {"default": RECIPE, "smoke": SMOKE}
RECIPES |= dict.fromkeys(("1.8b", "7b", "14b"), "default")  # former names: init_from has the size


def main(config: Config) -> None:
    """Trains; a signal ends it with a checkpoint."""
    if not config.data.pairs:
        raise ConfigError(
            "no pairs to learn from.",
            "--data.pairs",
            "name .json or .jsonl files; --help says which formats.",
        )
    config, tokenizer = start(config, config.data.context_length)
    rows = make_rows(config.data.pairs, config, tokenizer)
    with ended_by_signal():
        learn(for_epochs(config, len(rows)), rows, tokenizer)


class ComparedRows:
    """Pairs with the reference's log-probabilities of their answers, as rows of ComparedPairs."""

    def __init__(self, rows: PairRows, reference: np.ndarray):
        """
        Args:
          reference: float32 [rows, 2].
        """
        self._rows, self._reference = rows, reference

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, row: int) -> ComparedPairs:
        return ComparedPairs(self._rows[row], self._reference[row])

    @property
    def padding(self) -> ComparedPairs:
        """A pair of nothing."""
        return ComparedPairs(self._rows.padding, np.zeros(2, np.float32))

    def __repr__(self) -> str:
        return f"ComparedRows({self._rows!r})"


def compare(
    config: Config,
    all_rows: list[PairRows],
    load: Callable[[Params], Params],
    emit: Callable[[str], None],
) -> list[ComparedRows]:
    """Rows with what the weights that `load` gives think of them, each computed once."""
    mesh = make_mesh(config.mesh)
    check_batch(config.train.batch_size, config.train.micro_batches, mesh)
    with use_layout(mesh):
        # Weights that stand still are held in the dtype that they are used in.
        params = load(abstract(param_specs(config.model), config.model.compute_dtype, mesh))
        ask = jax.jit(functools.partial(answer_log_probs, config=config.model))
        by_row = NamedSharding(mesh, DEFAULT_RULES.partition_spec(("batch",)))
        size, found = config.train.batch_size, []
        for rows in all_rows:
            parts = []
            for first in range(0, len(rows), size):
                chosen = [rows[i] for i in range(first, min(first + size, len(rows)))]
                batch = stack_trees(fill_up(chosen, size, rows.padding))
                parts.append(on_host(ask(params, jax.device_put(batch, by_row))))
            found.append(ComparedRows(rows, np.concatenate(parts)[: len(rows)]))
    emit(f"reference: log-probabilities of {sum(map(len, all_rows)):,} pairs")
    return found


def learn(config: Config, rows: PairRows, tokenizer: Tokenizer, emit=flags.emit):
    """The run itself; returns the last TrainState."""
    names = names_of(config.data.eval_pairs)
    weights = start_of(config)
    compared, *held_out = compare(
        config,
        [rows] + [make_rows((path,), config, tokenizer, emit) for path in config.data.eval_pairs],
        weights["initial"],
        emit,
    )
    objective = make_objective(config.model, beta=config.beta, training=False)
    made = []

    def evaluate(put, done, state):
        if not made:
            made.append(make_means(objective, put))
        found = {}
        for name, rows in zip(names, held_out, strict=True):
            values = made[0](state.params, held_out_batches(rows, config))
            emit(
                f"step {done}  held out {name}: loss {values['loss']:.4f}  accuracy "
                f"{100 * values['accuracy']:.1f} %  margin {values['margin']:.3f}"
            )
            found |= {f"eval/{name}/{key}": value for key, value in values.items()}
        return found

    return train_on(
        compared,
        config,
        training_stage="dpo",
        emit=emit,
        tokenizer=tokenizer,
        **weights,
        objective=make_objective(config.model, beta=config.beta),
        evaluate=evaluate if held_out else None,
    )


if __name__ == "__main__":
    flags.run(main, __doc__, RECIPES)
