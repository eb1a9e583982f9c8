"""Peer: transformers' generate with a Qwen2 of the same size. Run in an environment with torch.

Prints one line of JSON: generated tokens per second, time to first token, and versions.
"""

import json
import sys
import time

import qwen2
import torch
import transformers


def main(size: dict) -> None:
    config = qwen2.make_config(size, positions=max(size["context_length"], size["prompt"] + 32))
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = transformers.Qwen2ForCausalLM(config).to(device, getattr(torch, size["dtype"])).eval()
    torch.manual_seed(0)

    def seconds(batch, length, new, **settings):
        ids = torch.randint(0, size["vocab_size"], (batch, length), device=device)
        begin = time.perf_counter()
        model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=new,
            min_new_tokens=new,
            pad_token_id=0,
            eos_token_id=None,
            **settings,
        )
        if device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - begin

    results = {}
    for batch in size["batches"]:
        for name, settings in (
            ("greedy", {"do_sample": False}),
            ("top-p", {"do_sample": True, "top_p": 0.9, "top_k": 0}),
        ):
            seconds(batch, 32, 2, **settings)
            best = min(seconds(batch, 32, size["new_tokens"], **settings) for _ in range(2))
            results[f"batch {batch:2}, {name}"] = batch * size["new_tokens"] / best
    times = [seconds(1, size["prompt"], 1, do_sample=False) for _ in range(4)]
    results[f"first token of {size['prompt']}"] = min(times[1:])
    print(
        json.dumps(
            {
                "results": results,
                "parameters": sum(weight.numel() for weight in model.parameters()),
                "versions": qwen2.versions(),
            }
        )
    )


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    main(json.loads(sys.argv[1]))
