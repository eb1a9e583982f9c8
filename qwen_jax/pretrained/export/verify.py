"""Compares a folder with `transformers`, which reads the Qwen2 and Qwen3 layouts natively.

Logits, ids, the chat template, and greedy text.
"""

import dataclasses
import os

import jax
import jax.numpy as jnp
import numpy as np

from qwen_jax.config import ModelConfig
from qwen_jax.errors import CheckpointError, ConfigError, TokenizerError
from qwen_jax.inference.decode import generate
from qwen_jax.model.transformer import forward
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.tokenizer.load import load_tokenizer
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
    "<|im_start|>user\n12345<|im_end|>\n",
)
_GREEDY_TOKENS = 16
_USER, _ANSWER = {"role": "user", "content": "你好 1+1?"}, {"role": "assistant", "content": "2\n"}
_CONVERSATIONS = (
    [_USER],
    [{"role": "system", "content": "Be brief."}, _USER],
    [_USER, _ANSWER, {"role": "user", "content": " <b>&\n\nwhy?"}],
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
        ours, found = tokenizer.encode(text, allow_special=True), theirs(text)["input_ids"]
        if ours != found:
            raise TokenizerError(
                f"transformers encodes {text!r} as {found[:20]}, qwen_jax as {ours[:20]}.",
                str(folder),
                "export the tokenizer again.",
            )


def compare_templates(folder: str | os.PathLike) -> int:
    """Compares how conversations are rendered; returns how many are equal.

    Returns:
      0 if the folder has no chat template.

    Raises:
      TokenizerError: transformers renders a conversation as other text.
    """
    import transformers

    theirs, ours = transformers.AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
    if not ours.settings.chat_templates or not theirs.chat_template:
        return 0
    cases = [(turns, prompt) for turns in _CONVERSATIONS for prompt in (True, False)]
    for turns, prompt in cases:
        expected = theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=prompt)
        found = ours.apply_chat_template(turns, add_generation_prompt=prompt)
        if found != expected:
            raise TokenizerError(
                f"transformers renders a conversation as {expected[:300]!r}, qwen_jax as "
                f"{found[:300]!r}.",
                str(folder),
                "please report this with the chat template.",
            )
    return len(cases)


def compare_greedy(
    config: ModelConfig, params: Params, folder: str | os.PathLike, tokenizer: Tokenizer | None
) -> str:
    """Compares greedy decoding in float32; returns the text, or ids if some have none.

    Where two ids have equal logits but for rounding, either is right, and the comparison ends.

    Raises:
      CheckpointError: transformers decodes other ids.
    """
    prompt = [1, 2, 3] if tokenizer is None else tokenizer.encode("The answer is")
    prompt = prompt[: max(1, config.context_length // 2)]  # beyond the context, ours is extended
    number = max(1, min(_GREEDY_TOKENS, config.context_length - len(prompt)))
    config = dataclasses.replace(config, compute_dtype="float32", param_dtype="float32")
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.float32), params)
    ours = generate(params, prompt, config=config, max_new_tokens=number)
    theirs, logits = _their_greedy(folder, prompt, number)
    pairs = zip(ours, theirs, strict=True)
    if (step := next((i for i, (a, b) in enumerate(pairs) if a != b), None)) is not None:
        gap = logits[step][theirs[step]] - logits[step][ours[step]]
        if not gap <= TOLERANCE * np.abs(logits[step]).max():
            raise CheckpointError(
                f"transformers decodes {theirs} after {list(prompt)}, qwen_jax {ours}.",
                str(folder),
                "do not use the output; please report this with config.json.",
            )
    if tokenizer is None or max(ours) >= tokenizer.vocab_size:  # ids that pad the vocabulary
        return str(ours)
    return tokenizer.decode(ours)


def _their_greedy(folder, prompt, number: int) -> tuple[list[int], np.ndarray]:
    """Returns transformers' ids, and the logits [step, V] that they were chosen from."""
    import torch  # pyright: ignore[reportMissingImports]
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    model, tokens = model.float().eval(), [int(token) for token in prompt]
    steps = []
    with torch.no_grad():  # not generate(), which applies the folder's generation_config.json
        for _ in range(number):
            steps.append(model(torch.tensor([tokens])).logits[0, -1].numpy())
            tokens.append(int(steps[-1].argmax()))
    return tokens[len(prompt) :], np.stack(steps)


def _their_logits(folder: str | os.PathLike, tokens: np.ndarray) -> np.ndarray:
    import torch  # pyright: ignore[reportMissingImports]
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    model = model.float().eval()
    with torch.no_grad():
        return model(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()
