"""The attackers of benchmarks.serve.attacks, each in a process of its own.

python -m benchmarks.serve.attackers NAME PORT ADDRESS
python -m benchmarks.serve.attackers burn PORT SHARE
"""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import Awaitable, Callable

PAUSE = 0.005  # seconds between two tries of a loop
FLOOD = 8  # loops of an attack that sends as fast as it can
HELD = 200  # connections of an attack that holds them


class Attacker:
    """Opens connections from an address."""

    def __init__(self, port: int, address: str):
        self._port, self._address = port, address

    def open(self):
        return asyncio.open_connection("127.0.0.1", self._port, local_addr=(self._address, 0))

    async def call(self, body: bytes) -> bytes:
        """Sends a request and returns the head of its response."""
        reader, writer = await self.open()
        try:
            writer.write(post(len(body)) + body)
            await writer.drain()
            head = await reader.readuntil(b"\r\n\r\n")
            await reader.read(100_000)
            return head
        finally:
            writer.close()


def post(length: int) -> bytes:
    return (
        b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n" % length
    )


def request(prompt: str, **settings) -> bytes:
    return json.dumps({"model": "model", "prompt": prompt} | settings).encode()


async def repeat(count: int, work: Callable[[], Awaitable]) -> None:
    """Runs `count` loops of `work`, whatever becomes of each."""

    async def loop():
        while True:
            with contextlib.suppress(OSError, EOFError, asyncio.LimitOverrunError):
                await work()
            await asyncio.sleep(PAUSE)

    await asyncio.gather(*(loop() for _ in range(count)))


async def dribble(attacker: Attacker, first: bytes, byte: bytes) -> None:
    reader, writer = await attacker.open()
    try:
        writer.write(first)
        while not reader.at_eof() and not writer.is_closing():
            if byte:
                writer.write(byte)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(reader.read(1000), 0.2)
    finally:
        writer.close()


async def idle(attacker: Attacker) -> None:
    """200 connections that send nothing, opened again when they are closed"""
    await repeat(HELD, lambda: dribble(attacker, b"", b""))


async def slow_headers(attacker: Attacker) -> None:
    """200 connections that send a byte of their headers every 0.2 s"""
    await repeat(HELD, lambda: dribble(attacker, b"GET / HTTP/1.1\r\nA: ", b"a"))


async def slow_body(attacker: Attacker) -> None:
    """200 connections that send a byte of their bodies every 0.2 s"""
    await repeat(HELD, lambda: dribble(attacker, post(100_000), b"a"))


async def long_prompts(attacker: Attacker) -> None:
    """8 loops that send prompts of 4 MB"""
    body = request("x y " * 1_000_000)
    await repeat(FLOOD, lambda: attacker.call(body))


async def longest_encoded(attacker: Attacker) -> None:
    """8 loops that send the longest prompts that are encoded, of one word"""
    body = request("x" * (1024 * 128))
    await repeat(FLOOD, lambda: attacker.call(body))


async def many_choices(attacker: Attacker) -> None:
    """8 loops of requests with n=72 and 500 tokens"""
    body = request("x", n=72, max_tokens=500, temperature=1)
    await repeat(FLOOD, lambda: attacker.call(body))


async def slow_readers(attacker: Attacker) -> None:
    """16 streams with n=8 and log-probabilities that nobody reads"""
    body = request("x", n=8, max_tokens=500, stream=True, logprobs=0)

    async def stream() -> None:
        _, writer = await attacker.open()  # asyncio reads 128 KiB at most until they are used
        try:
            writer.write(post(len(body)) + body)
            await asyncio.sleep(30)
        finally:
            writer.close()

    await repeat(16, stream)


async def log_flood(attacker: Attacker) -> None:
    """8 loops of requests that are not HTTP, each a warning in the log"""

    async def send() -> None:
        reader, writer = await attacker.open()
        try:
            writer.write(b"not HTTP\r\n\r\n")
            await reader.read(1000)
        finally:
            writer.close()

    await repeat(FLOOD, send)


ATTACKS = {
    one.__name__: one
    for one in (
        idle,
        slow_headers,
        slow_body,
        long_prompts,
        longest_encoded,
        many_choices,
        slow_readers,
        log_flood,
    )
}


def burn(share: float) -> None:
    """Uses this share of a core."""
    begin = time.monotonic()
    while True:
        if time.process_time() > share * (time.monotonic() - begin):
            time.sleep(0.01)


if __name__ == "__main__":
    name, port, argument = sys.argv[1:]
    print("started", flush=True)
    if name == "burn":
        burn(float(argument))
    asyncio.run(ATTACKS[name](Attacker(int(port), argument)))
