"""The claims, in the order of the report."""

from benchmarks.reproduce.claims import math_masking

CLAIMS = (math_masking.CLAIM,)
