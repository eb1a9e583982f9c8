"""Peer: Hugging Face Trainer with a Qwen2 of the same size. Run in an environment with torch.

Prints one line of JSON: tokens per second (median step), and versions.
"""

import json
import sys
import tempfile
import time

import numpy as np
import qwen2
import torch
import transformers


class Clock(transformers.TrainerCallback):
    """Records the end time of every step."""

    def __init__(self):
        self.times = []

    def on_step_end(self, *arguments, **settings):
        self.times.append(time.perf_counter())


def main(size: dict, steps: int, dtype: str) -> None:
    config = qwen2.make_config(size, positions=size["context_length"])
    model = transformers.Qwen2ForCausalLM(config).float()
    rng = np.random.default_rng(0)
    examples = [
        {"input_ids": ids, "labels": ids}
        for ids in rng.integers(
            0, size["vocab_size"], (steps * size["batch_size"], size["context_length"])
        )
    ]
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=size["batch_size"],
            max_steps=steps,
            learning_rate=3e-4,
            weight_decay=0.1,
            max_grad_norm=1.0,
            adam_beta2=0.95,
            lr_scheduler_type="cosine",
            logging_steps=steps,
            save_strategy="no",
            report_to=[],
            use_cpu=not torch.cuda.is_available(),
            disable_tqdm=True,
            bf16=dtype == "bfloat16",
        )
        transformers.Trainer(
            model=model, args=arguments, train_dataset=examples, callbacks=[clock]
        ).train()
    seconds = float(np.median(np.diff(clock.times)[2:]))
    print(
        json.dumps(
            {
                "tokens_per_second": size["batch_size"] * size["context_length"] / seconds,
                "parameters": sum(weight.numel() for weight in model.parameters()),
                "versions": qwen2.versions(),
            }
        )
    )


if __name__ == "__main__":
    if len(sys.argv) != 4:
        sys.exit(__doc__)
    main(json.loads(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
