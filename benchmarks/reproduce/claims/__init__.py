"""The claims, one file per topic, in their order on the page."""

from benchmarks.reproduce.claims import (
    architecture,
    assistant,
    code,
    data_plan,
    long_code,
    long_context,
    math,
    ppo_choices,
    reward_data,
    rlhf,
    sft_data,
    sizes,
    tools,
    vocabulary,
)

CLAIMS = (
    *assistant.CLAIMS,
    *vocabulary.CLAIMS,
    *sizes.CLAIMS,
    *architecture.CLAIMS,
    *long_context.CLAIMS,
    *data_plan.CLAIMS,
    *sft_data.CLAIMS,
    *reward_data.CLAIMS,
    *rlhf.CLAIMS,
    *ppo_choices.CLAIMS,
    *tools.CLAIMS,
    *code.CLAIMS,
    *math.CLAIMS,
    *long_code.CLAIMS,
)
