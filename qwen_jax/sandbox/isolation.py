"""Which layers of isolation this machine enforces, in one line, and when running is refused."""

import dataclasses

from qwen_jax.errors import QwenJaxError


class SandboxError(QwenJaxError):
    """Untrusted code that cannot be run here: no isolation, or no toolchain."""


@dataclasses.dataclass(frozen=True)
class Layers:
    """What a locked process was found to be denied, and by what."""

    landlock: int = 0  # ABI of the kernel; 0: none
    seccomp: bool = False
    namespaces: tuple[str, ...] = ()
    user: int | None = None  # that runs get; None: they keep ours, without its capabilities
    files: bool = False  # a file outside could be neither read nor written
    network: bool = False  # no socket, or none that reaches anything
    error: str = ""  # why the layers could not be applied

    @property
    def isolated(self) -> bool:
        """Whether both files and network are out of reach."""
        return self.files and self.network and not self.error

    @property
    def signals_stay_inside(self) -> bool:
        """Whether a run that may fork cannot signal other processes of this user."""
        return self.landlock >= 6 or "pid" in self.namespaces or self.user is not None

    def __str__(self) -> str:
        parts = [f"landlock ABI {self.landlock}" if self.landlock else "no landlock"]
        parts.append("seccomp" if self.seccomp else "no seccomp")
        names = " ".join(self.namespaces)
        parts.append(f"namespaces {names}" if names else "no namespaces")
        parts.append("rlimits")
        parts.append("our user" if self.user is None else f"user {self.user}")
        if self.error:
            parts.append(f"error: {self.error}")
        denied = [name for name in ("files", "network") if getattr(self, name)]
        return f"{', '.join(parts)}; out of reach: {' and '.join(denied) or 'nothing'}"

    def require(self, *, unsafe: bool) -> None:
        """Raises SandboxError unless files and network are out of reach, or `unsafe`."""
        if self.isolated or unsafe:
            return
        reachable = [name for name in ("files", "network") if not getattr(self, name)]
        raise SandboxError(
            "untrusted code cannot be isolated here: it would reach this machine's "
            f"{' and '.join(reachable) or 'files'}.",
            f"the kernel's layers: {self}",
            "use Linux 5.13 or later with Landlock (6.7 or later is best), or a container that "
            "permits user namespaces; to run it all the same, with your files and network in its "
            "reach, pass --unsafe.",
        )
