"""The thread that owns the engine, and the asyncio side that submits requests to it.

No other thread uses the engine. Other threads put functions into its queue, which it drains between
steps. The events of a step are passed to the event loop in one call. All other state (tickets,
counters, limits) belongs to the event loop.
"""

import asyncio
import contextlib
import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from absl import logging

from qwen_jax.errors import QwenJaxError
from qwen_jax.inference.batching.fair_queue import Owner
from qwen_jax.inference.request import Event, Request
from qwen_jax.inference.scoring import Row, Scores
from qwen_jax.serve.errors import ApiError, shutting_down
from qwen_jax.serve.scoring import Result, ScoringQueue, refusal

REFUSAL_SECONDS = 0.25  # before a client learns that it has too many requests


@dataclasses.dataclass
class Counters:
    """Counters for /metrics since the server started."""

    prompt_tokens: int = 0
    generated_tokens: int = 0
    scored: int = 0  # rows whose log-probabilities were computed
    finished: int = 0  # choices that ran to completion
    cancelled: int = 0  # choices cancelled by a disconnect or by the shutdown
    refused: int = 0  # requests rejected because the queue was full, for all or for a client
    unread: int = 0  # streams ended because the client did not read them
    first_token_seconds: float = 0.0  # summed over `first_tokens` requests
    first_tokens: int = 0


class Ticket:
    """The events of one API request, for all of its choices, in order of arrival.

    Args:
      client: whose request it is.
      max_events: events that may wait to be read; None: any number.
      scored: whether the choices are scored after their events; until then they count as open.
    """

    def __init__(
        self,
        prompt_tokens: int,
        num_choices: int,
        client: str = "",
        max_events: int | None = None,
        scored: bool = False,
    ):
        self.client, self._max_events = client, max_events
        self.num_choices = num_choices
        self.open = num_choices  # choices that have not finished
        self.scores: dict[int, Scores] = {}
        self.all_scored = asyncio.get_running_loop().create_future() if scored else None
        self.prompt_tokens = prompt_tokens
        self.submitted = time.monotonic()
        self.started = False
        self.accepted: asyncio.Future = asyncio.get_running_loop().create_future()
        self._events: list[tuple[int, Event]] = []
        self._error: ApiError | None = None
        self._arrived = asyncio.Event()

    def put(self, events: Iterable[tuple[int, Event]]) -> None:
        """Adds events, each with its choice."""
        self._events += events
        self._arrived.set()

    def fail(self, error: ApiError) -> None:
        """Ends the events with an error."""
        self._error = self._error or error
        self._arrived.set()
        if self.all_scored is not None and not self.all_scored.done():
            self.all_scored.set_exception(error)
            self.all_scored.exception()  # nobody may be waiting for it

    @property
    def unread(self) -> bool:
        """Whether more events wait than may."""
        return self._max_events is not None and len(self._events) > self._max_events

    def clear(self) -> None:
        """Forgets the events that wait."""
        self._events = []

    async def __aiter__(self):
        """Yields lists of (choice, event), all that have arrived, until every choice has finished.

        Raises:
          ApiError: the engine failed or is shutting down.
        """
        left = self.num_choices
        while left:
            await self._arrived.wait()
            self._arrived.clear()
            events, self._events, error = self._events, [], self._error
            left -= sum(event.finish is not None for _, event in events)
            if events:
                yield events
            if error is not None:
                raise error


class Worker:
    """Runs an engine for concurrent clients.

    Args:
      engine: inference.engine.Engine, or an object with its submit, cancel, step, busy and scorer.
      max_num_seqs: choices that the engine runs concurrently.
      max_queued: additional choices that may wait; a request that exceeds this is rejected.
      max_client_choices: choices of one client that may run or wait; None: all of them.
    """

    def __init__(
        self, engine, *, max_num_seqs: int, max_queued: int, max_client_choices: int | None = None
    ):
        self.max_num_seqs, self.capacity = max_num_seqs, max_num_seqs + max_queued
        self._max_client_choices = max_client_choices or self.capacity
        self.counters = Counters()
        self.in_flight = 0  # choices, running or waiting
        self.failure: ApiError | None = None  # the reason why requests are no longer accepted
        self._engine = engine
        self._tickets: set[Ticket] = set()
        self._commands: queue.SimpleQueue = queue.SimpleQueue()
        # Used only by the thread: request id -> (ticket, choice).
        self._routes: dict[int, tuple[Ticket, int]] = {}
        self._scoring = ScoringQueue(lambda: engine.scorer())
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._loop: asyncio.AbstractEventLoop | None = None

    def start(self) -> None:
        """Starts the thread; call it in the event loop that submits requests."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    async def submit(
        self,
        requests: Sequence[Request],
        *,
        client: str = "",
        max_events: int | None = None,
        scored: bool = False,
        generate: bool = True,
    ) -> Ticket:
        """Submits all of `requests` or none; the n choices of a request are consecutive.

        Args:
          client: clients take turns for decode slots.
          max_events: as in Ticket; beyond it the choices are cancelled.
          scored: whether `score` follows, until which the choices hold their place.
          generate: whether the engine runs the requests; otherwise they only hold their place.

        Raises:
          ApiError: the queue is full for all or for this client (429), the engine rejects a request
            (400), the engine has failed (500), or the server is shutting down (503).
        """
        if self.failure is not None:
            raise self.failure
        num_choices = sum(request.sampling.n for request in requests)
        try:
            self._check_room(num_choices, client)
        except ApiError as error:
            if error.code == "client_queue_full":  # a client that retries at once is slowed down
                await asyncio.sleep(REFUSAL_SECONDS)
            raise
        prompt_tokens = sum(len(request.prompt) for request in requests)
        ticket = Ticket(prompt_tokens, num_choices, client, max_events, scored)
        self._tickets.add(ticket)
        self.in_flight += num_choices
        self._commands.put(lambda: self._submit(ticket, requests if generate else ()))
        try:
            await ticket.accepted
        except ApiError:
            self._forget(ticket)
            raise
        except asyncio.CancelledError:
            self.cancel(ticket)
            raise
        self.counters.prompt_tokens += ticket.prompt_tokens
        return ticket

    async def score(self, ticket: Ticket, rows: Sequence[Row]) -> list[Scores]:
        """Returns the scores of each choice's row, in order; the choices have then finished.

        Args:
          ticket: was submitted with `scored`, and its choices have generated their tokens.

        Raises:
          ApiError: a row cannot be scored (400), the scores are not finite or there is no memory
            for them (500), or the server is shutting down (503).
        """
        assert ticket.all_scored is not None and len(rows) == ticket.num_choices
        if ticket in self._tickets:  # otherwise it has failed
            self._commands.put(lambda: self._score(ticket, rows))
        await ticket.all_scored
        return [ticket.scores[choice] for choice in range(ticket.num_choices)]

    def cancel(self, ticket: Ticket) -> None:
        """Cancels a ticket's unfinished choices and frees their decode slots."""
        if ticket in self._tickets:
            self.counters.cancelled += ticket.open
            self._forget(ticket)
            self._commands.put(lambda: self._cancel(ticket))

    async def drain(self, seconds: float, *, hurry: Callable[[], bool] = lambda: False) -> None:
        """Stops accepting requests; cancels those left after `seconds`, or once hurry() is true."""
        self.failure = self.failure or shutting_down()
        until = time.monotonic() + seconds
        while self._tickets and time.monotonic() < until and not hurry():
            await asyncio.sleep(0.05)
        for ticket in list(self._tickets):
            self._fail_ticket(ticket, shutting_down())
            self.cancel(ticket)

    def stop(self) -> None:
        """Stops the thread after its current step."""
        self.failure = self.failure or shutting_down()
        self._commands.put(None)

    def close(self, timeout: float) -> bool:
        """Stops the thread; returns whether it exited within `timeout` seconds."""
        self.stop()
        if self._thread.is_alive():
            self._thread.join(timeout)
        return not self._thread.is_alive()

    # The methods below run in the event loop.

    def _check_room(self, num_choices: int, client: str) -> None:
        own = sum(ticket.open for ticket in self._tickets if ticket.client == client)
        for used, limit, whose, code in (
            (self.in_flight, self.capacity, "", "queue_full"),
            (own, self._max_client_choices, " of this client", "client_queue_full"),
        ):
            if used + num_choices > limit:
                self.counters.refused += 1
                raise ApiError(
                    f"the queue is full: {used} choices{whose} are running or waiting, and "
                    f"{num_choices} more would exceed {limit}.",
                    fix="retry later.",
                    status=429,
                    code=code,
                    retry_after=1,
                )

    def _deliver(self, events: list[tuple[Ticket, int, Event]]) -> None:
        now = time.monotonic()
        by_ticket: dict[Ticket, list[tuple[int, Event]]] = {}
        for ticket, choice, event in events:
            by_ticket.setdefault(ticket, []).append((choice, event))
        for ticket, own in by_ticket.items():
            if ticket not in self._tickets:
                continue  # cancelled while the step ran
            if ticket.unread:  # before this step, which may have more events than the limit
                self.counters.unread += 1
                self.cancel(ticket)
                ticket.clear()
                ticket.fail(_unread())
                continue
            if not ticket.started:
                ticket.started = True
                self.counters.first_tokens += 1
                self.counters.first_token_seconds += now - ticket.submitted
            self.counters.generated_tokens += sum(event.token is not None for _, event in own)
            ticket.put(own)
            if ticket.all_scored is None:
                self._finish(ticket, sum(event.finish is not None for _, event in own))

    def _deliver_scores(self, results: list[Result]) -> None:
        for ticket, choice, scores in results:
            if ticket not in self._tickets:
                continue  # cancelled, or another row failed
            if isinstance(scores, ApiError):
                self._fail_scores(ticket, scores)
                continue
            self.counters.scored += 1
            ticket.scores[choice] = scores
            self._finish(ticket, 1)
            if not ticket.open:
                ticket.all_scored.set_result(None)

    def _fail_scores(self, ticket: Ticket, error: ApiError) -> None:
        ticket.fail(error)
        self.cancel(ticket)

    def _finish(self, ticket: Ticket, choices: int) -> None:
        self.counters.finished += choices
        self.in_flight -= choices
        ticket.open -= choices
        if not ticket.open:
            self._tickets.discard(ticket)

    def _forget(self, ticket: Ticket) -> None:
        self._tickets.discard(ticket)
        self.in_flight -= ticket.open
        ticket.open = 0

    def _fail_ticket(self, ticket: Ticket, error: ApiError) -> None:
        if not ticket.accepted.done():
            ticket.accepted.set_exception(error)
        ticket.fail(error)

    def _accept(self, ticket: Ticket) -> None:
        if not ticket.accepted.done():
            ticket.accepted.set_result(None)

    def _fail(self, error: BaseException) -> None:
        self.failure = ApiError(
            f"the engine failed: {type(error).__name__}: {error}",
            fix="restart the server.",
            status=500,
            code="engine_failed",
        )
        for ticket in list(self._tickets):
            self._fail_ticket(ticket, self.failure)
            self._forget(ticket)

    # The methods below run in the engine's thread.

    def _run(self) -> None:
        try:
            while True:
                # Wait for a command if there is nothing to compute; otherwise only poll.
                try:
                    busy = self._engine.busy or self._scoring.busy
                    command = self._commands.get(block=not busy)
                except queue.Empty:
                    self._step()
                    continue
                if command is None:
                    return
                command()
        except Exception as error:  # any type; if the thread died, clients would wait forever
            logging.exception("the engine failed")
            self._in_loop(self._fail, error)

    def _step(self) -> None:
        """Runs a step of the engine, and one of scoring."""
        if self._engine.busy:
            self._publish(self._engine.step())
        if self._scoring.busy and (results := self._scoring.step()):
            self._in_loop(self._deliver_scores, results)

    def _score(self, ticket: Ticket, rows: Sequence[Row]) -> None:
        try:
            self._scoring.add(rows, Owner(ticket.client, ticket))
        except Exception as error:  # any type: a device without memory must not end the server
            self._in_loop(self._fail_scores, ticket, refusal(error))

    def _submit(self, ticket: Ticket, requests: Sequence[Request]) -> None:
        ids: list[int] = []
        try:
            for request in requests:
                ids += self._engine.submit(request, Owner(ticket.client, ticket))
        except QwenJaxError as error:
            for request_id in ids:
                self._engine.cancel(request_id)
            self._in_loop(self._fail_ticket, ticket, ApiError(error.what, "", error.fix))
            return
        self._routes |= {request_id: (ticket, choice) for choice, request_id in enumerate(ids)}
        self._in_loop(self._accept, ticket)

    def _cancel(self, ticket: Ticket) -> None:
        self._scoring.cancel(ticket)
        for request_id in [i for i, (owner, _) in self._routes.items() if owner is ticket]:
            del self._routes[request_id]
            self._engine.cancel(request_id)

    def _publish(self, events: list[Event]) -> None:
        routed = []
        for event in events:
            if event.request_id in self._routes:
                routed.append((*self._routes[event.request_id], event))
                if event.finish is not None:
                    del self._routes[event.request_id]
        if routed:
            self._in_loop(self._deliver, routed)

    def _in_loop(self, function, *arguments) -> None:
        assert self._loop is not None, "call start() first"
        # The loop may be closed if the program exits without waiting for this thread's step.
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(function, *arguments)


def _unread() -> ApiError:
    return ApiError(
        "the client reads this stream too slowly.",
        fix="read events as they arrive.",
        status=408,
        code="slow_client",
    )
