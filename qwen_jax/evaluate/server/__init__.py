"""Evaluates a model behind any OpenAI-compatible server."""

from qwen_jax.evaluate.server.client import Server as Server
