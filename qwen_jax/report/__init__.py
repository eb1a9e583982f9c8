"""Reports of run folders: plots and an HTML page."""

from qwen_jax.report.at_end import report_at_end
from qwen_jax.report.page import write_report

__all__ = ["report_at_end", "write_report"]
