"""Peer: datatrove's four MinHash stages in one process. Requires datatrove and spacy.

    python datatrove_minhash.py FOLDER_OF_JSONL WORKING_FOLDER

Prints one line of JSON: seconds, number of documents kept, and version.
"""

import importlib.metadata
import json
import pathlib
import sys
import time

from datatrove.executor.local import LocalPipelineExecutor
from datatrove.pipeline.dedup.minhash import (
    MinhashConfig,
    MinhashDedupBuckets,
    MinhashDedupCluster,
    MinhashDedupFilter,
    MinhashDedupSignature,
)
from datatrove.pipeline.readers import JsonlReader
from datatrove.pipeline.writers import JsonlWriter


def main(source: str, working: str) -> None:
    config = MinhashConfig(n_grams=5, num_buckets=14, hashes_per_bucket=8)
    started = time.perf_counter()
    stages = (
        ([JsonlReader(source), MinhashDedupSignature(f"{working}/signatures", config)], 1),
        ([MinhashDedupBuckets(f"{working}/signatures", f"{working}/buckets", config=config)], 14),
        ([MinhashDedupCluster(f"{working}/buckets", f"{working}/remove", config=config)], 1),
        (
            [
                JsonlReader(source),
                MinhashDedupFilter(f"{working}/remove"),
                JsonlWriter(f"{working}/kept", compression=None),
            ],
            1,
        ),
    )
    for number, (pipeline, tasks) in enumerate(stages):
        LocalPipelineExecutor(
            pipeline, tasks=tasks, workers=1, logging_dir=f"{working}/logs{number}"
        ).run()
    seconds = time.perf_counter() - started
    kept = [
        json.loads(line)["text"]
        for path in pathlib.Path(working, "kept").rglob("*.jsonl")
        for line in open(path, encoding="utf-8")
    ]
    print(
        json.dumps(
            {
                "seconds": seconds,
                "kept": len(kept),
                "version": importlib.metadata.version("datatrove"),
            }
        )
    )


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
