"""The models of a server, by the name that requests give.

Each model has its own engine, thread and queue. The models of `LazyModels` are loaded when they are
first requested, and the one that was used longest ago makes room for another.
"""

import asyncio
import dataclasses
import functools
import gc
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from absl import logging

from qwen_jax.errors import QwenJaxError
from qwen_jax.inference.stream import token_bytes
from qwen_jax.serve.api.fields import Limits, short
from qwen_jax.serve.errors import ApiError, shutting_down
from qwen_jax.serve.worker import Worker
from qwen_jax.tokenizer.bpe import Tokenizer

BUSY_SECONDS = 60.0  # that a request waits for a loaded model to become idle, to take its place


@dataclasses.dataclass(frozen=True)
class Served:
    """A model that answers requests."""

    worker: Worker
    tokenizer: Tokenizer
    limits: Limits

    @functools.cached_property
    def token_bytes(self) -> dict[int, bytes]:
        """The bytes of each token id."""
        return token_bytes(self.tokenizer)


class Models:
    """Models that are loaded before the server starts; the first is the default."""

    def __init__(self, served: Iterable[Served] = ()):
        self._served = {one.limits.model: one for one in served}

    @property
    def loaded(self) -> dict[str, Served]:
        """Name -> model, of those that are loaded."""
        return self._served

    def names(self) -> list[str]:
        """Returns the names that requests may give."""
        return list(self._served)

    def ready(self, name: Any) -> Served | None:
        """Returns a model if it is loaded; any thread may call it.

        Args:
          name: the `model` of a request; None: the default.

        Raises:
          ApiError: there is no such model (404).
        """
        if name is None or len(self._served) == 1:  # Fields compares the only name
            return next(iter(self._served.values()))
        if isinstance(name, str) and name in self._served:
            return self._served[name]
        raise self.unknown(name)

    async def get(self, name: Any) -> Served:
        """Returns a model, which is loaded if it is not yet. Raises ApiError as `ready`."""
        served = self.ready(name)
        assert served is not None
        return served

    def start(self) -> None:
        """Starts the threads; call it in the event loop of the server."""
        for served in self._served.values():
            served.worker.start()

    @property
    def failure(self) -> ApiError | None:
        """The reason why a model no longer accepts requests."""
        return next((one.worker.failure for one in self._workers() if one.worker.failure), None)

    async def drain(self, seconds: float, *, hurry: Callable[[], bool] = lambda: False) -> None:
        """As Worker.drain, for all models."""
        await asyncio.gather(*(one.worker.drain(seconds, hurry=hurry) for one in self._workers()))

    def stop(self) -> None:
        """Stops the threads after their current step."""
        for one in self._workers():
            one.worker.stop()

    def close(self, timeout: float) -> bool:
        """Stops the threads; returns whether all exited within `timeout` seconds."""
        return all([one.worker.close(timeout) for one in self._workers()])

    def unknown(self, name: Any) -> ApiError:
        names = self.names()
        more = f" and {len(names) - 20} more" if len(names) > 20 else ""
        return ApiError(
            "model is missing or not a string."
            if not isinstance(name, str)
            else f"model {short(name)} does not exist.",
            "model",
            f"use one of {', '.join(map(repr, names[:20]))}{more}."
            if names
            else "train one first.",
            status=404 if isinstance(name, str) else 400,
            code="model_not_found" if isinstance(name, str) else "invalid_value",
        )

    def _workers(self) -> list[Served]:
        return list(self._served.values())


class LazyModels(Models):
    """Models that are loaded when they are first requested.

    Args:
      available: returns the names, each with a version; a model whose version has changed is loaded
        again, once nobody uses it. It may read the disk.
      load: loads a model; it runs in a thread.
      max_loaded: models that are loaded at the same time.
    """

    def __init__(
        self,
        available: Callable[[], Mapping[str, Any]],
        load: Callable[[str], Served],
        *,
        max_loaded: int,
    ):
        super().__init__()
        self._available, self._load, self._max_loaded = available, load, max_loaded
        self._versions: dict[str, Any] = {}  # of the loaded models
        self._lock, self._stopped = asyncio.Lock(), False
        self.loading: str | None = None

    def names(self) -> list[str]:
        return list(self._available())

    def ready(self, name: Any) -> Served | None:
        return None  # `get` looks at the versions

    async def get(self, name: Any) -> Served:
        """Returns a model, which is loaded if it is not yet, or if it has changed.

        Raises:
          ApiError: there is no such model (404), it cannot be loaded (500), or the loaded models
            are in use for too long (503).
        """
        available = await asyncio.to_thread(self._available)
        if name is None:
            name = next(iter(self._served), next(iter(available), None))
        if not isinstance(name, str) or name not in available:
            raise self.unknown(name)
        async with self._lock:  # one at a time: loading needs all of the device
            served = self._served.get(name)
            if served is not None and (served.worker.failure or self._is_old(name, available)):
                self._unload(name)
                served = None
            if served is None:
                await self._make_room()
                served = await self._start(name, available[name])
            self._served[name] = self._served.pop(name)  # the last is the one used last
        return served

    def _is_old(self, name: str, available: Mapping[str, Any]) -> bool:
        return self._versions[name] != available[name] and not self._served[name].worker.in_flight

    async def _start(self, name: str, version: Any) -> Served:
        self.loading = name
        try:
            served = await asyncio.to_thread(self._load, name)
        except QwenJaxError as error:
            raise ApiError(
                f"{name} cannot be loaded: {error.what}",
                "model",
                error.fix,
                status=500,
                code="model_not_loaded",
            ) from error
        except Exception as error:  # any type: a device without memory must not end the server
            logging.exception("%s cannot be loaded", name)
            raise ApiError(
                f"{name} cannot be loaded: {type(error).__name__}: {error}",
                "model",
                "choose another model.",
                status=500,
                code="model_not_loaded",
            ) from error
        finally:
            self.loading = None
        self._served[name], self._versions[name] = served, version
        served.worker.start()
        if self._stopped:
            served.worker.stop()
            raise shutting_down()
        return served

    async def _make_room(self) -> None:
        until = time.monotonic() + BUSY_SECONDS
        while len(self._served) >= self._max_loaded:
            idle = [name for name, one in self._served.items() if not one.worker.in_flight]
            if idle:
                self._unload(idle[0])
            elif time.monotonic() > until:
                raise ApiError(
                    f"{len(self._served)} models are loaded and in use.",
                    "model",
                    "retry later, or use one of the loaded models.",
                    status=503,
                    code="models_in_use",
                    retry_after=5,
                )
            else:
                await asyncio.sleep(0.05)

    def _unload(self, name: str) -> None:
        worker = self._served.pop(name).worker
        worker.failure = worker.failure or ApiError(
            f"{name} was unloaded.", "model", "retry.", status=503, code="unloaded", retry_after=1
        )
        worker.stop()
        del worker, self._versions[name]
        gc.collect()  # an engine is in cycles, and its memory is needed now

    def stop(self) -> None:
        self._stopped = True
        super().stop()
