"""What transformers says of folders: runs with version 4 or 5, and imports nothing of qwen_jax.

    python benchmarks/released/reference.py JOBS

JOBS is a JSON file: texts, conversations and questions (inputs.py), and "folders". Each "source" is
first saved as "folder" with save_pretrained, unless that is null.
"""

import json
import pathlib
import sys
from typing import Any

import numpy as np
import torch  # pyright: ignore[reportMissingImports]
import transformers

TOKENS = 24  # of the sequences whose logits are compared
NEW_TOKENS = 12
_SHARD = "200KB"


def resave(source: str, folder: str, sharded: bool) -> None:
    """Loads a model and its tokenizer, and saves them."""
    model = transformers.AutoModelForCausalLM.from_pretrained(source, **_dtype("auto"))
    model.save_pretrained(folder, max_shard_size=_SHARD if sharded else "5GB")
    transformers.AutoTokenizer.from_pretrained(source).save_pretrained(folder)


def _dtype(value: Any) -> dict[str, Any]:
    name = "torch_dtype" if transformers.__version__ < "4.56" else "dtype"
    return {name: value}


def describe(folder: str, output: pathlib.Path, inputs: dict[str, Any]) -> None:
    """Writes logits.npz and expected.json."""
    output.mkdir(parents=True, exist_ok=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        folder, attn_implementation="eager", **_dtype(torch.float32)
    ).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokens = np.random.default_rng(1).integers(0, len(tokenizer), (2, TOKENS), np.int32)
    with torch.no_grad():
        logits = model(torch.from_numpy(tokens.astype(np.int64))).logits.numpy()
    np.savez(output / "logits.npz", tokens=tokens, logits=logits)
    expected: dict[str, Any] = {"version": transformers.__version__}
    if inputs["texts"]:
        expected["ids"] = tokenizer(inputs["texts"])["input_ids"]
        expected["rendered"] = [_render(tokenizer, each) for each in inputs["conversations"]]
        expected["greedy"] = [_greedy(model, tokenizer, each) for each in inputs["questions"]]
    (output / "expected.json").write_text(json.dumps(expected), encoding="utf-8")


def _render(tokenizer, given: dict[str, Any]) -> str | None:
    """Returns the text of a conversation; None: the template refuses it."""
    try:
        return tokenizer.apply_chat_template(
            given["messages"],
            tools=given["tools"],
            add_generation_prompt=given["add_generation_prompt"],
            tokenize=False,
            **given["variables"],
        )
    except Exception:  # of any kind: what a template raises
        return None


def _greedy(model, tokenizer, messages: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns the prompt, its greedy continuation with the folder's own settings, and its text."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    prompt = torch.tensor([tokenizer(text)["input_ids"]])
    with torch.no_grad():
        out = model.generate(
            prompt, do_sample=False, max_new_tokens=NEW_TOKENS, return_dict_in_generate=True,
            output_scores=True, attention_mask=torch.ones_like(prompt),
            temperature=None, top_p=None, top_k=None,
        )  # fmt: skip
    ids = out.sequences[0, prompt.shape[1] :].tolist()
    best = [score[0].topk(2).values.tolist() for score in out.scores]
    return {
        "messages": messages,
        "ids": ids,
        "margins": [first - second for first, second in best],
        "text": tokenizer.decode(ids, skip_special_tokens=True),
    }


def main(path: str) -> None:
    jobs = json.loads(pathlib.Path(path).read_text(encoding="utf-8"))
    for job in jobs["folders"]:
        folder, output = job["folder"] or job["source"], pathlib.Path(job["output"])
        output.mkdir(parents=True, exist_ok=True)
        try:
            if job["folder"]:
                resave(job["source"], job["folder"], job["sharded"])
            describe(folder, output, jobs)
        except Exception as error:  # one folder that cannot be read does not stop the others
            (output / "failed.txt").write_text(f"{type(error).__name__}: {error}")
        print(output.name, flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
