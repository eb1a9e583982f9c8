"""A server whose models say what a message asks for, and a browser that opens its page."""

import contextlib
import os
import pathlib
import re
import shutil
import struct
import zlib

import pytest

from qwen_jax.agent.tool import Limits as ToolLimits
from qwen_jax.agent.tool import Result, Tool
from qwen_jax.agent.toolbox import Sources
from qwen_jax.inference.scoring import Scores
from qwen_jax.serve.api.protocol import Limits
from qwen_jax.serve.models import Models, Served
from qwen_jax.serve.page.routes import Page
from qwen_jax.serve.page.tools import Toolboxes
from qwen_jax.serve.page.votes import Votes
from qwen_jax.serve.worker import Worker
from tests.helpers.fake_engine import FakeEngine
from tests.helpers.server import running
from tests.helpers.tool_models import THINKING, tokenizer_with

CONTEXT = 200_000
CALL = '<tool_call>\n{"name": "figure", "arguments": {"color": "blue"}}\n</tool_call>'
DEMO = """# Blue light 蓝光

The sky is **blue** because of *Rayleigh scattering*: $I \\propto \\lambda^{-4}$.
天空是蓝色的,因为短波长的光散射得更强。

$$\\int_0^1 x^2\\,dx = \\frac{1}{3}$$

```python
def blue(wavelength: float) -> bool:
    return 450e-9 < wavelength < 495e-9  # meters
```

| color | nm |
|---|---|
| blue | 450 |

See [the article](https://example.com/sky)."""


class SpeakingEngine(FakeEngine):
    """Says DEMO to "demo", calls a tool for "figure", counts without end for "count", and so on.

    `say` overrides the answers: text of the last user message -> answer.
    """

    def __init__(self, tokenizer, *, name="tiny", seconds=0.0, say=None, per_step=24):
        super().__init__(tokenizer, max_model_len=CONTEXT, seconds=seconds)
        self._tokenizer, self._name, self._say, self._per_step = tokenizer, name, say, per_step

    def completion(self, request, sample):
        prompt = self._tokenizer.decode(list(request.prompt))
        turns = re.findall(r"<\|im_start\|>(\w+)\n(.*?)<\|im_end\|>", prompt, re.DOTALL)
        asked = next((text for role, text in turns[::-1] if role == "user"), "")
        system = next((text for role, text in turns[::-1] if role == "system"), "")
        self.last = request.sampling
        answer = self._answer(asked, system, turns, request.sampling.seed)
        return [*self._tokenizer.encode(answer), self._tokenizer.end_of_text]

    def _answer(self, asked, system, turns, seed) -> str:
        if self._say is not None and (found := self._say(asked)) is not None:
            return found
        if asked == "demo":
            return DEMO
        if asked == "think":
            return "<think>\nIt is a test.\n</think>\n\nI thought."
        if asked == "figure":
            return CALL if turns[-1][0] == "user" else "Here is the figure."
        if asked == "count":
            return " ".join(map(str, range(20_000)))
        if asked == "system":
            return f"My system prompt is: {system}"
        return f"{self._name} answers {asked!r}, seed {seed}"

    def step(self):
        events = []
        for _ in range(self._per_step):
            if self.busy:
                events += super().step()
        return events

    def scorer(self):
        return FakeScorer()


class FakeScorer:
    """Scores each token with 0.6, and the alternatives 'a' and 'b' below it."""

    free_slots = 4

    def __init__(self):
        self._rows = {}

    def check(self, row, where):
        pass

    def put(self, key, row):
        self._rows[key] = row

    def drop(self, key):
        del self._rows[key]

    def step(self):
        found = []
        for key, row in self._rows.items():
            top = tuple(((token, -0.51), (97, -1.6), (98, -2.3)) for _, token in row.scored)
            found.append((key, Scores((-0.51,) * len(row.scored), (True,) * len(row.scored), top)))
        self._rows = {}
        return found


def png(width: int = 40, height: int = 30) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    rows = b"".join(b"\0" + b"\x30\x60\xc0" * width for _ in range(height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(rows))
        + chunk(b"IEND", b"")
    )


def _draw(arguments: dict, limits: ToolLimits) -> Result:
    path = pathlib.Path(os.environ["QWEN_JAX_TEST_FIGURES"]) / "figure.png"
    path.write_bytes(png())
    return Result(f"drew a {arguments['color']} figure", files=(str(path),))


FIGURE = Tool(
    "figure",
    "Draws a figure.",
    _draw,
    {"type": "object", "properties": {"color": {"type": "string"}}, "required": ["color"]},
)


@contextlib.contextmanager
def page_server(folder, *, names=("sft", "ppo"), more=None, say=None, port=0, **settings):
    """Serves the page with speaking models within the block; yields the running server.

    Args:
      folder: for votes and figures.
      more: further routes of the page.
      settings: of the page's server, such as seconds, or api_key.
    """
    os.environ["QWEN_JAX_TEST_FIGURES"] = str(folder)
    pathlib.Path(folder).mkdir(exist_ok=True)
    tokenizer, seconds = tokenizer_with(THINKING), settings.pop("seconds", 0.0)
    served = []
    for name in names:
        engine = SpeakingEngine(tokenizer, name=name, seconds=seconds, say=say)
        worker = Worker(engine, max_num_seqs=4, max_queued=64)
        limits = Limits(name, CONTEXT, 8, {"temperature": 0.7, "top_p": 0.8})
        served.append(Served(worker, tokenizer, limits))
    votes = Votes(pathlib.Path(folder) / "votes")

    def make(models: Models) -> Page:
        return Page(
            models,
            votes=votes,
            tools=Toolboxes(Sources(tools=("tests.helpers.page:FIGURE",))),
            more=more,
            key="api_key" in settings,
        )

    models = Models(served)
    try:
        with running(
            None, tokenizer, models=models, page=make, context=CONTEXT, port=port, **settings
        ) as server:
            server.models = models
            yield server
    finally:
        votes.close()


def chromium() -> tuple[str, str]:
    """Returns the paths of Chromium and its driver; skips the test, or fails it, without them."""
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    driver, missing = shutil.which("chromedriver"), ""
    if browser is None or driver is None:
        missing = "no Chromium with its driver (Debian: chromium, chromium-driver)"
    else:
        try:
            import selenium  # noqa: F401
        except ImportError:
            missing = 'no selenium (pip install -e ".[test-browser]")'
    if missing:
        if os.environ.get("QWEN_JAX_REQUIRE_BROWSER") == "1":
            pytest.fail(f"{missing}, and QWEN_JAX_REQUIRE_BROWSER is 1")
        pytest.skip(missing)
    assert browser is not None and driver is not None
    return browser, driver
