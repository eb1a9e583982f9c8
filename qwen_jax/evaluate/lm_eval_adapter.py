"""A model for lm-eval (EleutherAI's harness), so that any of its tasks runs on our engine.

python -m qwen_jax.evaluate.lm_eval_adapter run --model qwen_jax \\
    --model_args checkpoint=FOLDER --tasks mmlu --output_path results

This is lm-eval's own command with the model "qwen_jax". In a program, pass an instance to
lm_eval.simple_evaluate(model=...). Prompts, token boundaries and what is cut are those of lm-eval
with transformers ("hf"), which the numbers equal up to rounding. Report: 2.6.
"""

import os
from collections.abc import Sequence
from typing import Any

from absl import logging
from tqdm import tqdm

from qwen_jax.errors import ConfigError, DataError, QwenJaxError, unknown_name
from qwen_jax.evaluate.harness import LoadedModel, Model
from qwen_jax.inference.request import Request
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.inference.scoring import Row
from qwen_jax.pretrained.load import load_model
from qwen_jax.tokenizer.template.builtin import CHAT_TEMPLATE
from qwen_jax.tokenizer.template.tokens import source_of
from qwen_jax.utils.output import print_error

try:
    from lm_eval.api.model import TemplateLM
    from lm_eval.api.registry import register_model
    from lm_eval.models.utils import normalize_gen_kwargs
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
except ImportError as error:
    missing = ConfigError(
        f"lm-eval is not installed ({error}).",
        "qwen_jax.evaluate.lm_eval_adapter",
        'pip install "qwen_jax[lm-eval]".',
    )
    if __name__ == "__main__":
        print_error(f"ConfigError:{missing}")
        raise SystemExit(missing.exit_code) from None
    raise missing from None

_ARGUMENTS = (
    "checkpoint",
    "tokenizer",
    "batch_size",
    "max_length",
    "max_gen_toks",
    "seed",
    "allow_nonfinite",
)


@register_model("qwen_jax")
class QwenJaxLM(TemplateLM):
    """lm-eval's interface to a checkpoint.

    Args:
      checkpoint: a run folder, a released dense Qwen to Qwen3, or a loaded model.
      tokenizer: its folder or file; None: the one in the folder.
      batch_size: rows per device that are computed at once; a CPU scores one. "auto": 16. Results
        do not depend on it.
      max_length: maximum tokens of a prompt and what follows; longer ones lose their beginning,
        which is counted in a warning. None: the model's context length.
      max_gen_toks: maximum new tokens of tasks that do not say.
      seed: of the first sampled completion; completion i of a call has seed + i.
      allow_nonfinite: whether to accept weights with NaN or infinity.
      max_batch_size, device: what lm-eval passes. They have no effect: JAX chooses the device.

    Raises:
      ConfigError: an argument is unknown or out of range, or the tokenizer does not fit.
      CheckpointError, TokenizerError: files are missing or damaged.
    """

    def __init__(
        self,
        checkpoint: str | os.PathLike | Model,
        *,
        tokenizer: str | None = None,
        batch_size: int | str = 16,
        max_length: int | None = None,
        max_gen_toks: int = 256,
        seed: int = 1234,
        allow_nonfinite: bool = False,
        max_batch_size: int | None = None,
        device: str | None = None,
        **unknown: Any,
    ):
        super().__init__()
        if unknown:
            raise unknown_name("argument", next(iter(unknown)), _ARGUMENTS, "--model_args")
        if device not in (None, "cuda:0"):  # the latter is lm-eval's default
            raise ConfigError(
                f"device={device!r} is not used.", "--device", "omit it; set JAX_PLATFORMS instead."
            )
        rows = 16 if str(batch_size).startswith("auto") else int(batch_size)
        if rows < 1 or max_gen_toks < 1:
            raise ConfigError(
                f"batch_size={batch_size} and max_gen_toks={max_gen_toks} must be positive.",
                "--model_args",
                "use 1 or more.",
            )
        if isinstance(checkpoint, Model):
            model, self._name = checkpoint, "engine"
        else:
            self._name = os.fspath(checkpoint)
            model = Model(*load_model(self._name, tokenizer, allow_nonfinite=allow_nonfinite))
        self._loaded = LoadedModel(model, batch_size=rows, max_length=max_length)
        self.max_length, self.batch_size = self._loaded.max_length, rows
        self.max_gen_toks, self._seed = max_gen_toks, seed
        self._special = frozenset(model.tokenizer.special_tokens.values())

    @property
    def eot_token_id(self) -> int:
        return self._loaded.tokenizer.end_of_text

    @property
    def tokenizer_name(self) -> str:
        return f"qwen_jax-{self._loaded.tokenizer.fingerprint}"

    def chat_template(self, chat_template: bool | str = False) -> str | None:
        """Returns the model's template, or ChatML's without one, if one is wanted."""
        source = source_of(self._loaded.tokenizer) or CHAT_TEMPLATE
        return source if chat_template else None

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Returns a conversation by the model's chat template.

        Args:
          chat_history: messages with "role" and "content".
          add_generation_prompt: whether the assistant's turn begins; otherwise the last message is
            left open, to be continued.
        """
        text = self._loaded.tokenizer.apply_chat_template(
            chat_history, add_generation_prompt=add_generation_prompt
        )
        return text if add_generation_prompt else text.removesuffix("<|im_end|>\n")

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **unused: Any
    ) -> list[int]:
        """Returns the ids of a text; special tokens in it are parsed.

        Args:
          add_special_tokens: has no effect: Qwen adds none, so none is there twice.
        """
        return self._loaded.tokenizer.encode(string, allow_special=True)

    def _loglikelihood_tokens(
        self,
        requests: Sequence[tuple[Any, list[int], list[int]]],
        disable_tqdm: bool = False,
        **unused: Any,
    ) -> list[tuple[float, bool]]:
        scored: dict[tuple[int, ...], list[tuple[int, int]]] = {}
        places, cut = [], 0
        for pair, context, continuation in requests:
            lost = max(0, len(context) + len(continuation) - self.max_length - 1)
            cut += lost > 0
            if not context or not continuation or lost >= len(context):
                raise _bad_pair(pair, len(continuation), self.max_length)
            tokens = (*context, *continuation[:-1])[lost:]
            first = len(tokens) - len(continuation)
            pairs = scored.setdefault(tokens, [])  # choices of one token share a row
            places.append((tokens, len(pairs), len(continuation)))
            pairs += [(first + i, target) for i, target in enumerate(continuation)]
        if cut:
            logging.warning(
                "%d of %d prompts are longer than max_length=%d and lose their beginning.",
                cut,
                len(requests),
                self.max_length,
            )
        rows = [Row(tokens, tuple(pairs)) for tokens, pairs in scored.items()]
        found = {}
        total = sum(len(row.tokens) for row in rows)
        with tqdm(total=total, unit=" tokens", unit_scale=True, disable=disable_tqdm) as bar:
            for index, scores in self._loaded.scorer.score(rows, progress=bar.update):
                found[rows[index].tokens] = scores
        results = []
        for (pair, _, _), (tokens, begin, count) in zip(requests, places, strict=True):
            own = slice(begin, begin + count)
            answer = sum(found[tokens].logprobs[own]), all(found[tokens].most_likely[own])
            if pair is not None:
                self.cache_hook.add_partial("loglikelihood", pair, answer)
            results.append(answer)
        return results

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Returns the log-likelihood of each text, in windows of max_length tokens.

        Args:
          requests: instances with the arguments (text,).
          disable_tqdm: whether to hide the progress.
        """
        windows, counts = [], []
        for request in requests:
            pairs = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            own = [(None, *make_disjoint_window(pair)) for pair in pairs]
            windows += own
            counts.append(len(own))
        scores = iter(self._loglikelihood_tokens(windows, disable_tqdm=disable_tqdm))
        results = []
        for request, count in zip(requests, counts, strict=True):
            total = sum(next(scores)[0] for _ in range(count))
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
            results.append(total)
        return results

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Returns the completion of each context.

        Args:
          requests: instances with the arguments (context, settings); settings are until,
            max_gen_toks (or a synonym), do_sample, temperature, top_p, top_k, repetition_penalty.
          disable_tqdm: whether to hide the progress.

        Raises:
          ConfigError: a setting is unknown or out of range.
        """
        prepared, cut = [], 0
        for index, request in enumerate(requests):
            one, stops, lost = self._generation(*request.args, index)
            prepared.append((one, stops))
            cut += lost > 0
        if cut:
            logging.warning(
                "%d of %d prompts leave no room for their completion in max_length=%d, and lose "
                "their beginning.",
                cut,
                len(requests),
                self.max_length,
            )
        engine = self._loaded.engine
        ids = [engine.submit(one)[0] for one, _ in prepared]
        tokens: dict[int, list[int]] = {request_id: [] for request_id in ids}
        unfinished = len(ids)
        with tqdm(total=unfinished, unit=" completions", disable=disable_tqdm) as bar:
            while unfinished:
                for event in engine.step():
                    if event.token is not None:
                        tokens[event.request_id].append(event.token)
                    if event.finish is not None:
                        unfinished -= 1
                        bar.update(1)
        results = []
        for request, request_id, (_, stops) in zip(requests, ids, prepared, strict=True):
            text = self._text(tokens[request_id], stops)
            self.cache_hook.add_partial("generate_until", request.args, text)
            results.append(text)
        return results

    def _generation(
        self, context: str, settings: dict[str, Any], index: int
    ) -> tuple[Request, list[str], int]:
        """Returns an engine request, its stop strings, and the tokens that it lost."""
        given = dict(normalize_gen_kwargs(settings, self.max_gen_toks))
        stops = [stop for stop in given.pop("until") if stop]
        new = int(given.pop("max_gen_toks"))
        if not given.pop("do_sample", False):
            given["temperature"] = 0.0
        known = ("temperature", "top_p", "top_k", "repetition_penalty")
        for name in given:
            if name not in known:
                raise unknown_name("setting", name, known, "--gen_kwargs")
        tokens = self.tok_encode(context) or [self.prefix_token_id]
        room = self.max_length - new
        if room < 1:
            raise ConfigError(
                f"max_gen_toks={new} leaves no room in max_length={self.max_length}.",
                "--gen_kwargs",
                "lower max_gen_toks.",
            )
        sampling = SamplingParams.named(
            "--gen_kwargs ({})",
            max_new_tokens=new,
            stop=tuple(stops),
            stop_token_ids=(self.eot_token_id,),
            seed=self._seed + index,
            **given,
        )
        return Request(tuple(tokens[-room:]), sampling), stops, max(0, len(tokens) - room)

    def _text(self, tokens: Sequence[int], stops: Sequence[str]) -> str:
        """Returns the text before the first stop string; special tokens are left out.

        As with transformers, a special token can be a stop string all the same.
        """
        text = self._loaded.tokenizer.decode([one for one in tokens if one not in self._special])
        for stop in stops:
            text = text.partition(stop)[0]
        return text


def _bad_pair(pair, count: int, max_length: int) -> DataError:
    shown = "a text" if pair is None else f"{pair[0][-40:]!r} and {pair[1][:40]!r}"
    if not count:
        return DataError(
            "the continuation has no token of its own: its first characters belong to the last "
            "token of the context, or it is empty.",
            shown,
            "begin it with a space (target_delimiter), as lm-eval's tasks do.",
        )
    return DataError(
        f"the continuation has {count} tokens, and the model's context {max_length}.",
        shown,
        "use a model with a longer context, or raise max_length.",
    )


def main() -> None:
    """Runs lm-eval's command, which then knows the model "qwen_jax".

    Errors of ours are printed without lm-eval's traceback.
    """
    from lm_eval.__main__ import cli_evaluate

    try:
        cli_evaluate()
    except QwenJaxError as error:
        print_error(f"{type(error).__name__}:{error}")
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
