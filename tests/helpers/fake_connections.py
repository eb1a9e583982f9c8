"""An event loop and transports for connections without a network."""

import asyncio


class FakeLoop:
    """Records timers, which run when the test fires them; `now` is its time."""

    def __init__(self):
        self.timers, self.now = [], 0.0

    def time(self) -> float:
        return self.now

    def call_later(self, delay, function, *arguments):
        timer = _Timer(self.timers, delay, function, arguments)
        self.timers.append(timer)
        return timer

    def delays(self) -> list[float]:
        return [timer.delay for timer in self.timers]

    def fire(self, delay: float) -> None:
        """Runs all timers of this delay."""
        for timer in [timer for timer in self.timers if timer.delay == delay]:
            timer.cancel()
            timer.function(*timer.arguments)

    def create_task(self, work, **_):
        work.close()  # the application does not run
        return asyncio.Future(loop=_NO_LOOP)


class _Timer:
    def __init__(self, timers, delay, function, arguments):
        self.timers, self.delay = timers, delay
        self.function, self.arguments = function, arguments

    def cancel(self):
        if self in self.timers:
            self.timers.remove(self)


_NO_LOOP = asyncio.new_event_loop()


class FakeTransport:
    """A transport whose connection is lost as soon as it is closed."""

    def __init__(self, host: str):
        self.host, self.connection = host, None
        self.written, self.high = bytearray(), None
        self.closed = self.aborted = self.eof = self.paused = False

    def get_extra_info(self, name):
        return (self.host, 1) if name == "peername" else None

    def set_write_buffer_limits(self, high):
        self.high = high

    def write(self, data):
        self.written += data

    def write_eof(self):
        self.eof = True

    def is_closing(self):
        return self.closed

    def close(self):
        if not self.closed:
            self.closed = True
            self.connection.connection_lost(None)

    def abort(self):
        self.aborted = True
        self.close()

    def pause_reading(self):
        self.paused = True

    def resume_reading(self):
        self.paused = False
