"""The report of a run folder: plots and one HTML page."""

from qwen_jax.report.page import write_report

__all__ = ["write_report"]
