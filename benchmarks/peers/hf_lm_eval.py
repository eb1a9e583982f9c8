"""Peer: lm-eval with transformers on a checkpoint and a task in files. Needs lm-eval and torch.

Prints one line of JSON: seconds, accuracy, the log-probabilities of each question's choices by its
id, and versions. The time has tokenization, but not the loading of weights.
"""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import sys
import time


def main(settings: dict) -> None:
    work = pathlib.Path(settings["work"])
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "HF_DATASETS_OFFLINE": "1",
        "HF_HOME": str(work / "cache"),
    }
    import lm_eval
    import torch
    import transformers
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with contextlib.redirect_stdout(sys.stderr):
        model = HFLM(
            str(work / "model"),
            device=device,
            dtype="float32",
            batch_size=settings["batch_size"],
        )
        begin = time.perf_counter()
        found = lm_eval.simple_evaluate(
            model=model,
            tasks=["mmlu"],
            task_manager=TaskManager(include_path=str(work), include_defaults=False),
            bootstrap_iters=0,
            log_samples=True,
        )
        seconds = time.perf_counter() - begin
    samples = found["samples"]["mmlu"]
    result = {
        "seconds": seconds,
        "accuracy": 100 * sum(one["acc"] for one in samples) / len(samples),
        "logprobs": {
            one["doc"]["id"]: [choice[0][0] for choice in one["resps"]] for one in samples
        },
        "versions": f"lm-eval {importlib.metadata.version('lm_eval')}, torch {torch.__version__}, "
        f"transformers {transformers.__version__}",
    }
    print(json.dumps(result))


if __name__ == "__main__":
    main(json.loads(sys.argv[1]))
