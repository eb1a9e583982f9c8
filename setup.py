"""qwen_jax: the Qwen Technical Report as one JAX package. `pip install -e .` trains on a CPU."""

from setuptools import find_packages, setup

TEXT = ["pyarrow>=15", "tokenizers>=0.20", "trafilatura>=2", "lxml_html_clean>=0.4"]
DATA = TEXT + ["daft>=0.7.20", "py3langid>=0.4", "resiliparse>=2"]
REPORT = ["matplotlib>=3.8"]
SERVE = ["starlette>=0.40", "uvicorn>=0.30"]

setup(
    name="qwen_jax",
    version="0.1.0",
    description="Pretraining, alignment and evaluation of Qwen in JAX, for TPU and GPU",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["qwen_jax*", "experiments*"]),
    package_data={"qwen_jax.kernels": ["tiles.json"], "qwen_jax.corpus.output": ["review.html"]},
    install_requires=[
        "absl-py>=2.0",
        "flax>=0.10",
        "grain>=0.2.11",
        "jax>=0.10",
        "numpy>=1.26",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "regex>=2024.4.16",
        "safetensors>=0.4.5",
        "tensorboardX>=2.6.2",
        "tiktoken>=0.13",
        "tqdm>=4.66",
    ],
    extras_require={
        "data": DATA,  # the data plan: engine, extraction, languages, dedup, vocabulary training
        "ray": DATA + ["ray>=2.40"],  # the data plan on a cluster
        "report": REPORT,  # plots and the run's HTML page
        "verify": ["transformers>=4.45", "torch>=2.2"],  # logits of an export compared with theirs
        "serve": SERVE,  # the OpenAI-compatible server
        "tpu": ["jax[tpu]>=0.10"],
        "cuda12": ["jax[cuda12]>=0.10"],
        "cuda13": ["jax[cuda13]>=0.10"],
        "quickstart": TEXT + REPORT,
        "test": DATA
        + REPORT
        + SERVE
        + ["openai>=1.50", "pytest>=8", "pytest-xdist>=3.5", "transformers>=4.45"],
    },
)
