"""Formats sizes and times for humans.

Memory is in GiB (2**30 bytes), as reported by devices. Files and disks are in GB (1e9 bytes), as in
data sheets.
"""

import math
import re


def format_gib(size: float) -> str:
    """Formats a memory size in bytes: 1.50 GiB, or 12.3 MiB below a tenth of a GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 // 10 else f"{size / 2**20:.1f} MiB"


def format_gb(size: float) -> str:
    """Formats a file size in bytes: 1.50 GB, or 12.3 MB below one GB."""
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def format_seconds(seconds: float) -> str:
    """Formats a duration in seconds: 95 -> 1m35s, 7322 -> 2h02m, infinity -> "?"."""
    if not math.isfinite(seconds):
        return "?"
    seconds = int(round(seconds))
    if seconds < 60:
        return f"{seconds}s"
    if seconds < 3600:
        return f"{seconds // 60}m{seconds % 60:02d}s"
    return f"{seconds // 3600}h{seconds % 3600 // 60:02d}m"


def plot_label(name: str) -> str:
    """Returns a name as Matplotlib draws it: no formula, no hidden label, at most 60 characters."""
    name = re.sub(r"[\ud800-\udfff\x00-\x1f]", "?", name[:60]).replace("$", r"\$")
    return f" {name}" if name.startswith("_") else name
