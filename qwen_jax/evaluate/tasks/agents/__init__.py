"""Agents (report 3.4): tool use, the code interpreter, and the agent over Hugging Face's tools."""

from qwen_jax.evaluate.tasks.agents import bfcl, hf_agent, interpreter, tool_use

TASKS = (*tool_use.TASKS, *interpreter.TASKS, *hf_agent.TASKS, *bfcl.TASKS)
SUITES = {
    "table6": tuple(task.key for task in tool_use.TASKS),
    "table8": tuple(task.key for task in interpreter.TASKS),  # and Table 7, `executable`
    "table9": tuple(task.key for task in hf_agent.TASKS),
    "agents": tuple(task.key for task in TASKS),
}
