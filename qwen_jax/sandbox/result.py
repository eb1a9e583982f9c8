"""What a run returns."""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Result:
    """The end of a run.

    `ok` says that it ended by itself with status 0 within its limits. That is no verdict: code can
    end itself with status 0 whenever it likes (see check and call).
    """

    ok: bool
    stdout: str  # invalid UTF-8 is replaced; cut at the limit
    stderr: str
    reason: str  # why it is not ok; "" if it is
    seconds: float  # wall clock
    cpu_seconds: float = 0.0
    status: int | None = None  # exit status; -n: ended by signal n; None: never started
    results: bytes = dataclasses.field(default=b"", repr=False)  # of a call
