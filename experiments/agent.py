"""An agent in the terminal: a model that thinks, calls tools and reads their results. Report: 3.4.

python -m experiments.agent --checkpoint=runs/mine --tools=python,docs,calculator
python -m experiments.agent --checkpoint=FOLDER --tools=table,plot,python --folder=sales
python -m experiments.agent --checkpoint=FOLDER --input=questions.jsonl --output=answers.jsonl
python -m experiments.agent --server=http://127.0.0.1:8000 --model=NAME --tool.mcp="uvx my-server"

The dialect of the calls is the tokenizer's: ReAct for Qwen-1, <tool_call> for Qwen2.5 and Qwen3.
Python runs in the sandbox and sees only the working folder. Ctrl-C stops a turn; at the prompt,
Ctrl-C twice or Ctrl-D exits. --record writes a transcript; --replay runs it again with the recorded
results of the tools, and checks that every token is the same.
"""

import contextlib
import dataclasses
import io
import sys

from qwen_jax.agent import batch, transcript
from qwen_jax.agent.events import Delta
from qwen_jax.agent.loop import Budgets
from qwen_jax.agent.models.engine import EngineModel
from qwen_jax.agent.models.protocol import Model
from qwen_jax.agent.models.server import ServerModel
from qwen_jax.agent.terminal import Printer, Session, has_color
from qwen_jax.agent.tool import LANGUAGES
from qwen_jax.agent.toolbox import NAMES, Sources, opened
from qwen_jax.cli import flags
from qwen_jax.config import option
from qwen_jax.errors import ConfigError, unknown_name
from qwen_jax.inference import chat
from qwen_jax.inference.jsonl import fingerprint
from qwen_jax.inference.sampling import SamplingParams
from qwen_jax.inference.warmup import mesh_of, start_engine
from qwen_jax.pretrained.load import load_model
from qwen_jax.ranges import ABOVE_ZERO, ONE_OR_MORE, Checked, limits_of


@dataclasses.dataclass(frozen=True)
class ToolFlags(Checked):
    """The tools of the session."""

    openapi: tuple[str, ...] = option((), "OpenAPI 3 documents (.json, .yaml) that become tools")
    mcp: tuple[str, ...] = option(
        (), "MCP servers: URLs, or commands of programs on stdio", kind="text"
    )
    docs: tuple[str, ...] = option(
        ("stdlib",), "packages that the tool docs searches; stdlib: Python's own", kind="text"
    )
    cell_seconds: float = option(30.0, "maximum seconds of one cell of Python", ABOVE_ZERO)
    unsafe: bool = option(False, "run Python even where the kernel cannot isolate it")
    language: str = option("en", f"language of the tools' descriptions: {', '.join(LANGUAGES)}")


@dataclasses.dataclass(frozen=True)
class SamplingFlags(Checked):
    """How replies are sampled."""

    temperature: float = option(
        0.0, "sampling temperature; 0: greedy decoding", limits_of(SamplingParams, "temperature")
    )
    top_p: float = option(
        1.0, "nucleus sampling: probability mass", limits_of(SamplingParams, "top_p")
    )
    seed: int = option(0, "seed of the first reply", limits_of(SamplingParams, "seed"))


@dataclasses.dataclass(frozen=True)
class Config(Checked):
    """The model, its tools and its budgets."""

    checkpoint: str = option(
        "", "model to load: a run folder, or a released dense Qwen to Qwen3", empty=True
    )
    tokenizer: str | None = option(None, "folder or file; None: the one in the model's folder")
    server: str | None = option(
        None, "URL of an OpenAI-compatible server, instead of --checkpoint", kind="url"
    )
    model: str = option("", "name of the model of --server", empty=True, kind="text")
    tools: tuple[str, ...] = option(
        ("python",), f"tools: {', '.join(NAMES)}, or MODULE:NAME of your own", kind="text"
    )
    folder: str | None = option(
        None, "working folder that the tools read and write; None: a temporary one"
    )
    system: str = option("", "text of the system message", empty=True, kind="text")
    max_turns: int = option(
        10, "maximum replies of the model to one question", limits_of(Budgets, "max_turns")
    )
    max_tokens: int = option(
        4096, "maximum sampled tokens for one question", limits_of(Budgets, "max_tokens")
    )
    max_seconds: float = option(
        600.0, "maximum seconds for one question", limits_of(Budgets, "max_seconds")
    )
    record: str | None = option(None, "file of the transcript; a new file")
    replay: str | None = option(None, "transcript to run again and to compare")
    input: str | None = option(None, "JSONL file of questions")
    output: str | None = option(None, "JSONL file for the answers of --input")
    context: int | None = option(
        None, "maximum tokens of prompt and reply; None: the longest supported", ONE_OR_MORE
    )
    tensor: int = option(
        1, "number of devices that weights and KV cache are sharded over", ONE_OR_MORE
    )
    sampling: SamplingFlags = SamplingFlags()
    tool: ToolFlags = ToolFlags()

    def __post_init__(self):
        super().__post_init__()
        if self.checkpoint and self.server is not None:
            raise ConfigError(
                "there must be one model: a checkpoint or a server.",
                "--checkpoint, --server",
                "set one of them.",
            )
        if (self.server is None) != (not self.model):
            raise ConfigError(
                "--server and --model go together.", "--server, --model", "set both, or none."
            )
        if (self.input is None) != (self.output is None):
            raise ConfigError(
                "--input and --output go together.", "--input, --output", "set both, or none."
            )
        if sum(each is not None for each in (self.record, self.replay, self.input)) > 1:
            raise ConfigError(
                "--record, --replay and --input exclude each other.",
                "--record, --replay, --input",
                "set one of them.",
            )
        if self.tool.language not in LANGUAGES:
            raise unknown_name("language", self.tool.language, LANGUAGES, "--tool.language")

    @property
    def budgets(self) -> Budgets:
        """The budgets of one question."""
        return Budgets(
            max_turns=self.max_turns, max_tokens=self.max_tokens, max_seconds=self.max_seconds
        )

    @property
    def sources(self) -> Sources:
        """Where the tools come from."""
        return Sources(
            tools=self.tools,
            openapi=self.tool.openapi,
            mcp=self.tool.mcp,
            docs=self.tool.docs,
            folder=self.folder,
            cell_seconds=self.tool.cell_seconds,
            unsafe=self.tool.unsafe,
        )


def main(config: Config) -> None:
    """Loads the model and answers questions."""
    if config.replay is not None:
        transcript.read(config.replay)  # reports a wrong file before the model is loaded
    model, identity = load(config)
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    if config.replay is not None:
        return replay(config.replay, model, identity)
    if config.input is not None and config.output is not None:
        made_from = {
            "model": identity,
            "budgets": dataclasses.asdict(config.budgets),
            "system": config.system,
            "tools": [*config.tools, *config.tool.openapi, *config.tool.mcp],
            "language": config.tool.language,
        }
        return batch.answer_file(
            model,
            config.sources,
            config.budgets,
            config.input,
            config.output,
            provenance=made_from,
            system=config.system,
            language=config.tool.language,
            log=flags.log,
        )
    with contextlib.ExitStack() as stack:
        tools, root = stack.enter_context(opened(config.sources))
        recorder = None
        if config.record is not None:
            recorder = stack.enter_context(
                transcript.Recorder(
                    config.record,
                    identity,
                    model.dialect.name,
                    tools,
                    config.budgets,
                    config.tool.language,
                )
            )
        print(f"working folder: {root}; tools: {', '.join(tool.name for tool in tools)}")
        session = Session(
            model,
            tools,
            config.budgets,
            system=config.system,
            language=config.tool.language,
            recorder=recorder,
        )
        session.run()


def load(config: Config) -> tuple[Model, dict]:
    """Returns the model, and what identifies it and its sampling settings."""
    settings = dataclasses.asdict(config.sampling)
    if config.server is None and not config.checkpoint:
        raise ConfigError(
            "there is no model.", "--checkpoint, --server", "set --checkpoint=FOLDER."
        )
    if config.server is not None:
        name = {"server_model": config.model, **settings}
        return ServerModel(config.server, config.model, settings=settings), name
    sampling = SamplingParams(max_new_tokens=1, **settings)
    mesh = mesh_of(config.tensor)
    model, params, tokenizer = load_model(config.checkpoint, config.tokenizer, mesh=mesh)
    context, sentence = chat.context(model, config.context)
    identity = {"fingerprint": fingerprint(model, params), "context": context, **settings}
    engine = start_engine(
        params, model, tokenizer, max_num_seqs=1, context=context, cache_dtype=None, mesh=mesh
    )
    print(f"context: {sentence}")
    engine.on_new_size = _say_compiling
    return EngineModel(engine, tokenizer, sampling), identity


def _say_compiling(size: int) -> None:
    print(f"(compiling for prompts of up to {size} tokens, once ...)", flush=True)


def replay(path: str, model: Model, identity: dict) -> None:
    """Runs a transcript again; prints it.

    Raises:
      DataError: it differs from the recording.
      ConfigError: the recording was made with another model or other settings.
    """
    recorded = transcript.read(path).model
    if recorded != identity:
        differing = sorted(
            key for key in {**recorded, **identity} if recorded.get(key) != identity.get(key)
        )
        raise ConfigError(
            f"the transcript was recorded with another {', '.join(differing)}.",
            f"--replay={path}",
            f"set {'; '.join(f'{key}: {recorded.get(key)}' for key in differing)}.",
        )
    printer = Printer(color=has_color())
    count = 0
    for _, event in transcript.replay(path, model):
        printer.show(event)
        count += not isinstance(event, Delta)
    print(f"(replayed: {count} events are the recorded ones)")


if __name__ == "__main__":
    flags.run(main, __doc__, {"default": Config()})
