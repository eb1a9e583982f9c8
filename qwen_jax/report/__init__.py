"""Reports of run folders: plots and an HTML page."""

from qwen_jax.report.page import write_report

__all__ = ["write_report"]
