"""The claims, one file per topic, in their order on the page."""

from benchmarks.reproduce.claims import gate
from benchmarks.reproduce.claims.base import (
    architecture,
    data_plan,
    long_context,
    sizes,
    vocabulary,
)
from benchmarks.reproduce.claims.chat import (
    assistant,
    overfitting,
    ppo_choices,
    prompt_tags,
    reward_data,
    rlhf,
    sft_data,
    tools,
)
from benchmarks.reproduce.claims.specialists import code, code_stages, long_code, math

CLAIMS = (
    *gate.CLAIMS,
    *assistant.CLAIMS,
    *overfitting.CLAIMS,
    *vocabulary.CLAIMS,
    *sizes.CLAIMS,
    *architecture.CLAIMS,
    *long_context.CLAIMS,
    *data_plan.CLAIMS,
    *sft_data.CLAIMS,
    *reward_data.CLAIMS,
    *prompt_tags.CLAIMS,
    *rlhf.CLAIMS,
    *ppo_choices.CLAIMS,
    *tools.CLAIMS,
    *code.CLAIMS,
    *code_stages.CLAIMS,
    *math.CLAIMS,
    *long_code.CLAIMS,
)
