"""Formatting of sizes and times."""

import math

import pytest

from qwen_jax.utils.format import format_gb, format_gib, format_seconds


@pytest.mark.parametrize(
    "size, gib, gb",
    [
        (0, "0.0 MiB", "0.0 MB"),
        (10**6, "1.0 MiB", "1.0 MB"),
        (2**20 * 100, "100.0 MiB", "104.9 MB"),
        (2**20 * 512, "0.50 GiB", "536.9 MB"),
        (10**9, "0.93 GiB", "1.00 GB"),
        (2**30, "1.00 GiB", "1.07 GB"),
        (80 * 2**30, "80.00 GiB", "85.90 GB"),
    ],
)
def test_format_gib_and_format_gb_choose_the_unit(size, gib, gb):
    assert (format_gib(size), format_gb(size)) == (gib, gb)


@pytest.mark.parametrize(
    "seconds, text",
    [
        (5, "5s"),
        (59.6, "1m00s"),
        (95, "1m35s"),
        (3599.7, "1h00m"),
        (7322, "2h02m"),
        (math.inf, "?"),
    ],
)
def test_format_seconds_rounds_to_two_units(seconds, text):
    assert format_seconds(seconds) == text
