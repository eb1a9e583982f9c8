"""The claims, one file per topic, in their order on the page."""

from benchmarks.reproduce.claims import (
    code,
    math,
    ppo_choices,
    reward_data,
    rlhf,
    sft_data,
    sizes,
)

CLAIMS = (
    *sizes.CLAIMS,
    *sft_data.CLAIMS,
    *reward_data.CLAIMS,
    *rlhf.CLAIMS,
    *ppo_choices.CLAIMS,
    *code.CLAIMS,
    *math.CLAIMS,
)
