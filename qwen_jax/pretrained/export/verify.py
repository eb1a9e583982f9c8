"""Compares logits with `transformers`, which reads the Qwen2 and Qwen3 layouts natively."""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np

from qwen_jax.config import ModelConfig
from qwen_jax.errors import ConfigError, TokenizerError
from qwen_jax.model.transformer import forward
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.types import Params

# Both compute in float32 and differ in the order of summation: about 1e-5 of the largest logit,
# measured. A misplaced row or a wrong rotary base causes differences of order 1.
TOLERANCE = 1e-3  # relative to the largest logit

_SEQUENCES, _LENGTH = 2, 64
_TEXTS = (
    "The quick brown fox\n\n  jumps over 13 lazy dogs, isn't it?",
    "通义千问 2023年",
    "def f(x):\n\treturn x ** 2",
    "e\u0301 \u00e9 \U0001f600",
)


@dataclasses.dataclass(frozen=True)
class Difference:
    """The largest difference of all compared logits, and its position."""

    worst: float
    largest: float  # largest absolute value of transformers' logits
    sequence: int  # index in the batch
    position: int
    token: int
    ours: float
    theirs: float
    same_argmax: float  # fraction of positions where both have the same argmax

    @property
    def agrees(self) -> bool:
        return self.worst <= TOLERANCE * self.largest  # false for NaN

    def __str__(self) -> str:
        return (
            f"largest difference {self.worst:.2e} of logits up to {self.largest:.3g}, at "
            f"sequence {self.sequence}, position {self.position}, token {self.token}: "
            f"ours {self.ours:.6g}, theirs {self.theirs:.6g}; same argmax at "
            f"{100 * self.same_argmax:.1f} % of positions"
        )


def require() -> None:
    """Raises ConfigError, naming the extra to install, if transformers or PyTorch is missing."""
    try:
        import torch  # noqa: F401  # pyright: ignore[reportMissingImports]
        import transformers  # noqa: F401
    except ImportError as error:
        raise ConfigError(
            f"comparing logits needs transformers and PyTorch: {error}.",
            "--verify",
            'pip install "qwen_jax[verify]"',
        ) from error


def compare_logits(config: ModelConfig, params: Params, folder: str | os.PathLike) -> Difference:
    """Compares our `params` with transformers' model of a folder, both in float32.

    Uses random tokens within the training length, where no context extension applies.
    """
    length = min(_LENGTH, config.context_length)
    tokens = np.random.default_rng(0).integers(0, config.vocab_size, (_SEQUENCES, length), np.int32)
    config = dataclasses.replace(
        config, compute_dtype="float32", param_dtype="float32", dropout=0.0
    )
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    ours = np.asarray(forward(params, tokens, config=config))
    theirs = _their_logits(folder, tokens)
    error = np.abs(ours - theirs)
    where = np.unravel_index(np.argmax(error), error.shape)  # the first NaN, if there is one
    sequence, position, token = map(int, where)
    return Difference(
        worst=float(error[where]),
        largest=float(np.abs(theirs).max()),
        sequence=sequence,
        position=position,
        token=token,
        ours=float(ours[where]),
        theirs=float(theirs[where]),
        same_argmax=float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
    )


def compare_tokenizers(tokenizer: Tokenizer, folder: str | os.PathLike) -> None:
    """Raises TokenizerError if the folder's AutoTokenizer returns different ids."""
    import transformers

    theirs = transformers.AutoTokenizer.from_pretrained(folder)
    for text in _TEXTS:
        ours, found = tokenizer.encode(text), theirs(text)["input_ids"]
        if ours != found:
            raise TokenizerError(
                f"transformers encodes {text!r} as {found[:20]}, qwen_jax as {ours[:20]}.",
                str(folder),
                "export the tokenizer again.",
            )


def _their_logits(folder: str | os.PathLike, tokens: np.ndarray) -> np.ndarray:
    import torch  # pyright: ignore[reportMissingImports]
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    model = model.float().eval()
    with torch.no_grad():
        return model(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()
