"""Peer: a training step of transformers' Qwen2 with SDPA and torch.compile. Requires torch.

Weights are in FP32 and matmuls in BF16 (autocast); AdamW is fused. With moment_dtype=bfloat16, both
weights and moments are in BF16, because torch does not support BF16 moments of FP32 weights. Prints
one line of JSON.
"""

import json
import sys
import time

import numpy as np
import qwen2
import torch
import transformers


def main(work: dict) -> None:
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    config = qwen2.make_config(
        work, positions=work["context_length"], attn_implementation="sdpa", use_cache=False
    )
    all_bf16 = work["moment_dtype"] == "bfloat16"
    with torch.device(device):
        model = transformers.Qwen2ForCausalLM(config)
    model = model.to(torch.bfloat16 if all_bf16 else torch.float32).train()
    if work["remat"] != "none":
        model.gradient_checkpointing_enable({"use_reentrant": False})
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=3e-4,
        betas=(0.9, 0.95),
        eps=1e-8,
        weight_decay=0.1,
        fused=device == "cuda",
    )
    compiled = torch.compile(model)
    micro_batch = work["batch_size"] // work["micro_batches"]
    rng = np.random.default_rng(0)

    def step() -> float:
        total = 0.0
        for _ in range(work["micro_batches"]):
            ids = torch.as_tensor(
                rng.integers(0, work["vocab_size"], (micro_batch, work["context_length"])),
                device=device,
            )
            with torch.autocast(device, torch.bfloat16, enabled=not all_bf16):
                loss = compiled(input_ids=ids, labels=ids).loss / work["micro_batches"]
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return float(total)

    times, losses = [], []
    for _ in range(work["steps"]):
        started = time.perf_counter()
        losses.append(step())  # float() in step() waits for the device
        times.append(time.perf_counter() - started)
    seconds = float(np.median(times[work["warm_up"] :]))
    print(
        json.dumps(
            {
                "tokens_per_second": work["batch_size"] * work["context_length"] / seconds,
                "step_seconds": seconds,
                "first_loss": losses[0],
                "last_loss": losses[-1],
                "peak_gb": torch.cuda.max_memory_allocated() / 1e9 if device == "cuda" else 0.0,
                "parameters": sum(weight.numel() for weight in model.parameters()),
                "versions": qwen2.versions(),
            }
        )
    )


if __name__ == "__main__":
    if len(sys.argv) != 2 or sys.argv[1] in ("-h", "--help"):
        sys.exit(__doc__)
    main(json.loads(sys.argv[1]))
