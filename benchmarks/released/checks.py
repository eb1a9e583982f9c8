"""What must hold of one folder: each check compares it with what transformers says (reference.py).

A check returns what it has found, in a few words, and raises AssertionError if that is wrong.
"""

import contextlib
import dataclasses
import io
import json
import pathlib
import shutil
import unicodedata
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import tiktoken
from safetensors.numpy import load_file

import qwen_jax
from benchmarks.released import folders, inputs
from benchmarks.released.cells import Cell
from benchmarks.released.families import FAMILIES
from experiments import convert, sft
from qwen_jax.errors import QwenJaxError
from qwen_jax.tokenizer.bpe import Tokenizer
from qwen_jax.utils.jsonl import write_rows

TOLERANCE = 1e-4  # of logits of order 1, in float32: rounding of sums
_DEFAULT = "You are a helpful assistant."


@dataclasses.dataclass(frozen=True)
class Place:
    """A cell's folder on disk."""

    cell: Cell
    root: pathlib.Path
    shared: pathlib.Path

    @property
    def model(self) -> pathlib.Path:
        return self.root / self.cell.name / "model"

    @property
    def of_qwen1(self) -> bool:
        return self.cell.family == "Qwen-1"

    def output(self, name: str) -> pathlib.Path:
        """Returns a path for a folder that does not exist yet."""
        path = self.root / self.cell.name / name
        shutil.rmtree(path, ignore_errors=True)
        return path

    def expected(self) -> dict:
        return json.loads((self.root / self.cell.name / "expected/expected.json").read_text())


def load(place: Place):
    """Returns config, params and tokenizer, in float32."""
    config, params = qwen_jax.load_pretrained(place.model, param_dtype="float32")
    config = dataclasses.replace(config, compute_dtype="float32")
    return config, params, qwen_jax.load_tokenizer(place.model)


def logits(place: Place, forward) -> str:
    """Compares logits; those of Qwen-1's released code are known for float32 weights.

    For its other dtypes, the right ones are of these weights, rounded.
    """
    config, params, _ = load(place)
    if place.of_qwen1:
        stored = np.load(place.shared / "reference/qwen1_tiny/expected.npz")
        tokens, expected = stored["ids_32"].astype(np.int32), stored["logits_32"]
        if (dtype := folders.KINDS[place.cell.kind].get("torch_dtype")) is not None:
            _, exact = qwen_jax.load_pretrained(place.shared / "reference/qwen1_tiny")
            rounded = jax.tree.map(lambda leaf: leaf.astype(dtype).astype(jnp.float32), exact)
            expected = np.asarray(forward(rounded, tokens, config=config))
    else:
        stored = np.load(place.root / place.cell.name / "expected/logits.npz")
        tokens, expected = stored["tokens"], stored["logits"]
    worst = float(np.abs(np.asarray(forward(params, tokens, config=config)) - expected).max())
    assert np.std(expected) > 0.3, "the logits are almost constant"
    assert worst <= TOLERANCE, f"logits differ by {worst:.2e}"
    return f"{worst:.0e}"


def ids(place: Place) -> str:
    """Compares the ids of texts with added tokens in them, and that none of them is parsed."""
    texts, tokenizer = inputs.texts(place.shared), qwen_jax.load_tokenizer(place.model)
    expected = _ids_of_qwen1(place, texts) if place.of_qwen1 else place.expected()["ids"]
    control = set(tokenizer.special_tokens.values())
    for text, right in zip(texts, expected, strict=True):
        found = tokenizer.encode(text, allow_special=True)
        assert found == right, f"{text!r}: {found[:20]}, not {right[:20]}"
        plain = tokenizer.encode(text)
        assert not control & set(plain), f"{text!r} became a control token"
        assert tokenizer.decode(plain) == unicodedata.normalize("NFC", text), text
    return f"{len(texts):,}"


def _ids_of_qwen1(place: Place, texts: list[str]) -> list[list[int]]:
    """As the released tokenization_qwen.py does it, with tiktoken."""
    size = len((place.model / "qwen.tiktoken").read_bytes().splitlines())
    encoding = tiktoken.Encoding(
        "qwen",
        pat_str=folders.PATTERN,
        mergeable_ranks=folders.read_ranks(place.shared, size),
        special_tokens={name: size + i for i, name in enumerate(FAMILIES["Qwen-1"].added)},
    )
    return [
        encoding.encode(unicodedata.normalize("NFC", text), allowed_special="all") for text in texts
    ]


def template(place: Place) -> str:
    """Compares conversations as text; where the template refuses one, so must we."""
    tokenizer, cases = qwen_jax.load_tokenizer(place.model), inputs.conversations()
    if place.of_qwen1:
        cases = [case for case in cases if case["tools"] is None]
        expected = [_chatml(case) for case in cases]
    else:
        expected = place.expected()["rendered"]
    for case, right in zip(cases, expected, strict=True):
        found = _render(tokenizer, case)
        assert found == right, f"{case}: {found!r}, not {right!r}"
    refused = sum(right is None for right in expected)
    return f"{len(cases)}" + (f" ({refused} refused)" if refused else "")


def _chatml(case: dict) -> str:
    """The context that Qwen-1's released code makes: turns of ChatML, and a system message."""
    messages = case["messages"]
    if messages[0]["role"] != "system":
        messages = [{"role": "system", "content": _DEFAULT}, *messages]
    text = "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in messages)
    return text + ("<|im_start|>assistant\n" if case["add_generation_prompt"] else "")


def _render(tokenizer: Tokenizer, case: dict) -> str | None:
    variables = {} if tokenizer.settings.chat_templates == {} else case["variables"]
    try:
        return tokenizer.apply_chat_template(
            case["messages"], case["tools"], case["add_generation_prompt"], **variables
        )
    except QwenJaxError:
        return None


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    """Returns name -> content of all files but weights and the model card."""
    skipped = (".safetensors", "README.md", "model.safetensors.index.json", ".metadata")
    return {
        file.name: file.read_bytes()
        for file in sorted(folder.iterdir())
        if file.is_file() and not file.name.endswith(skipped)
    }


def tensors_of(folder: pathlib.Path) -> dict[str, np.ndarray]:
    return {
        name: array
        for file in sorted(folder.glob("*.safetensors"))
        for name, array in load_file(file).items()
    }


def compare_files(before: pathlib.Path, after: pathlib.Path, may_change: tuple = ()) -> list[str]:
    """Returns what differs, but for keys of config.json that may change."""
    left, right = files_of(before), files_of(after)
    problems = [f"{name} is missing" for name in left.keys() - right.keys()]
    problems += [f"{name} is new" for name in right.keys() - left.keys()]
    for name in left.keys() & right.keys():
        if left[name] == right[name]:
            continue
        if name == "config.json":
            old, new = json.loads(left[name]), json.loads(right[name])
            keys = [key for key in {**old, **new} if old.get(key, ...) != new.get(key, ...)]
            if problem := [key for key in keys if key not in may_change]:
                problems.append(f"config.json: {problem}")
        else:
            problems.append(f"{name} differs")
    return sorted(problems)


def _convert(source: pathlib.Path, output: pathlib.Path, layout: str | None = None) -> pathlib.Path:
    config = convert.Config(input=str(source), output=str(output))
    with contextlib.redirect_stdout(io.StringIO()):
        convert.main(dataclasses.replace(config, layout=layout))  # pyright: ignore[reportArgumentType]
    return output


def round_trip(place: Place) -> str:
    """Folder -> run -> export, without training: the same files, and the same bits of weights."""
    run = _convert(place.model, place.output("run"), "run")
    layout = "qwen" if place.of_qwen1 else None
    out = _convert(run, place.output("again"), layout)
    assert not (problems := compare_files(place.model, out)), problems
    before, after = tensors_of(place.model), tensors_of(out)
    assert before.keys() == after.keys(), before.keys() ^ after.keys()
    for name, array in before.items():
        same = array.dtype == after[name].dtype and array.tobytes() == after[name].tobytes()
        assert same, f"{name}: {array.dtype}, {after[name].dtype}"
    return f"{len(before)} tensors, {len(files_of(out))} files"


def train_and_export(place: Place) -> str:
    """One step of SFT, and its export: the same files and dtype, which transformers reads."""
    data, run = place.root / "conversations.jsonl", place.output("sft")
    rows = [
        {"messages": [{"role": "user", "content": f"{i}+1 <|im_end|>"},
                      {"role": "assistant", "content": f"\n{i + 1}\n"}]}
        for i in range(8)
    ]  # fmt: skip
    write_rows(data, rows)
    config = dataclasses.replace(
        sft.SMOKE,
        init_from=str(place.model),
        run_dir=str(run),
        data=dataclasses.replace(sft.SMOKE.data, conversations=(str(data),), context_length=128),
        train=dataclasses.replace(
            sft.SMOKE.train, num_steps=1, batch_size=8, eval_every=None, save_every=None
        ),
        optimizer=dataclasses.replace(sft.SMOKE.optimizer, warmup_steps=0),
    )
    quiet = mock.patch.object(sft, "report_at_end", lambda *_: contextlib.nullcontext())
    with quiet, contextlib.redirect_stdout(io.StringIO()):
        sft.main(config)
    out = _convert(run, place.output("trained"), "qwen" if place.of_qwen1 else None)
    grown = ("seq_length",) if place.of_qwen1 else ()  # its 32 tokens are shorter than a row
    assert not (problems := compare_files(place.model, out, grown)), problems
    before, after = tensors_of(place.model), tensors_of(out)
    assert before.keys() == after.keys()
    assert all(array.dtype == after[name].dtype for name, array in before.items())
    assert any(array.tobytes() != after[name].tobytes() for name, array in before.items())
    return "kept" if place.of_qwen1 else f"kept, {as_transformers(out):.0e}"


def as_transformers(folder: pathlib.Path, theirs=None) -> float:
    """Compares logits with transformers; returns the largest difference.

    Args:
      theirs: their model, in float32; None: AutoModelForCausalLM of the folder.
    """
    import torch  # pyright: ignore[reportMissingImports]
    import transformers

    if theirs is None:
        theirs = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    config, params = qwen_jax.load_pretrained(folder, param_dtype="float32")
    config = dataclasses.replace(config, compute_dtype="float32")
    tokens = np.arange(1, 25, dtype=np.int32)[None]
    with torch.no_grad():
        right = theirs.eval()(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()
    worst = float(np.abs(np.asarray(qwen_jax.forward(params, tokens, config=config)) - right).max())
    assert worst <= TOLERANCE, f"logits of the export differ by {worst:.2e}"
    return worst
