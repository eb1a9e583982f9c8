"""Five tools and seven worked examples, the seeds of self-instruct with tools.

They are ours, because the report's are not published.
"""

from qwen_jax.data.chat.react import Tool
from qwen_jax.synthetic.self_instruct import Seed


def _text(name: str, description: str, *, required: bool = True) -> dict:
    return {
        "name": name,
        "description": description,
        "required": required,
        "schema": {"type": "string"},
    }


TOOLS = (
    Tool(
        "web search",
        "web_search",
        "Finds pages on the web and returns what the best of them say. For facts that may have "
        "changed or are little known.",
        (_text("query", "what to look for"),),
    ),
    Tool(
        "calculator",
        "calculator",
        "Computes an arithmetic expression exactly.",
        (_text("expression", "such as (3 + 4) * 2 ** 10"),),
    ),
    Tool(
        "weather",
        "weather",
        "The weather of a city, today or in the next days.",
        (
            _text("city", "the city's name"),
            _text("date", "YYYY-MM-DD; without it, today", required=False),
        ),
    ),
    Tool(
        "calendar",
        "calendar",
        "Reads the user's appointments, and adds new ones.",
        (
            _text("action", "read or add"),
            _text("date", "YYYY-MM-DD"),
            _text("title", "of the appointment to add", required=False),
        ),
    ),
    Tool(
        "python interpreter",
        "python",
        "Runs Python code and returns what it prints. Enclose the code within triple backticks "
        "(`) at the beginning and end of the code.",
    ),
)

EXAMPLES = (
    Seed(
        "What is 17.5 percent of 2,384?",
        "Thought: I can compute this exactly with the calculator.\n"
        'Action: calculator\nAction Input: {"expression": "2384 * 17.5 / 100"}\n'
        "Observation: 417.2\nThought: I now know the final answer\n"
        "Final Answer: 17.5 percent of 2,384 is 417.2.",
        ("calculator", "web_search"),
    ),
    Seed(
        "Do I need an umbrella in Hamburg on 12 March 2024?",
        "Thought: I should look at the forecast for Hamburg on that day.\n"
        'Action: weather\nAction Input: {"city": "Hamburg", "date": "2024-03-12"}\n'
        "Observation: Rain from noon, 7 to 11 degrees, wind from the west.\n"
        "Thought: I now know the final answer\n"
        "Final Answer: Yes, take one: rain is expected from noon, at 7 to 11 degrees.",
        ("weather", "calendar", "calculator"),
    ),
    Seed(
        "北京明天比上海冷多少度？今天是2024年1月8日。",
        "Thought: 需要先查北京明天的天气，再查上海的。\n"
        'Action: weather\nAction Input: {"city": "北京", "date": "2024-01-09"}\n'
        "Observation: 晴，最高气温2度。\n"
        "Thought: 还需要上海明天的天气。\n"
        'Action: weather\nAction Input: {"city": "上海", "date": "2024-01-09"}\n'
        "Observation: 多云，最高气温9度。\n"
        "Thought: 两地都知道了，相差7度。\n"
        "Final Answer: 明天北京最高2度，上海最高9度，北京比上海冷7度。",
        ("web_search", "weather"),
    ),
    Seed(
        "谁写了《围城》？请用一句话介绍作者。",
        "Thought: 这是常识，不需要使用工具。\n"
        "Final Answer: 《围城》的作者是钱钟书，他是中国现代著名的作家和文学研究家。",
        ("calculator", "weather", "python"),
    ),
    Seed(
        "How many of the numbers from 1 to 1000 are divisible by 7 but not by 3?",
        "Thought: A short program can count them.\n"
        "Action: python\nAction Input: ```\n"
        "print(sum(n % 7 == 0 and n % 3 != 0 for n in range(1, 1001)))\n```\n"
        "Observation: 95\nThought: I now know the final answer\n"
        "Final Answer: 95 of the numbers from 1 to 1000 are divisible by 7 but not by 3.",
        ("python", "web_search"),
    ),
    Seed(
        "Put my dentist's appointment on 3 May 2024 into the calendar if that day is still free.",
        "Thought: First I have to see what is on that day.\n"
        'Action: calendar\nAction Input: {"action": "read", "date": "2024-05-03"}\n'
        "Observation: No appointments.\nThought: The day is free, so I add the appointment.\n"
        'Action: calendar\nAction Input: {"action": "add", "date": "2024-05-03", '
        '"title": "dentist"}\n'
        "Observation: Added.\nThought: I now know the final answer\n"
        "Final Answer: 3 May 2024 was free, and the dentist's appointment is now on it.",
        ("calendar",),
    ),
    Seed(
        # British, as it was written: runs record a hash of these examples, and resume only with it.
        "Suggest a friendly opening line for a letter to my new neighbours.",
        "Thought: I can write this without any tool.\n"
        'Final Answer: "Hello and welcome! We live next door and are happy to have you here."',
        ("web_search", "calendar", "calculator", "weather"),
    ),
)
