"""The claims, one file per topic, in their order on the page."""

from benchmarks.reproduce.claims import math, rlhf

CLAIMS = (*rlhf.CLAIMS, *math.CLAIMS)
