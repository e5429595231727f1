"""One server, over HTTP: what it says is bounded in size and in time, and every way to fail has its sentence.

Requests run on a loop of their own thread, so that the deadline holds for all of it: names, connection, certificate,
headers and body, however slowly they drip. Redirects are refused: the key would go along.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
import weakref
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.parse import urlsplit

from laocoon.core.errors import BrokenFile, InputError, MissingExtra
from laocoon.files.endpoint_options import EndpointOptions
from laocoon.files.wording import first_line, printable

VARIABLE = "LAOCOON_API_KEY"  # sent as a bearer token; never on the command line, where other users could read it
LARGEST = 64 * 2**20  # bytes of an answer
PASSING = (429, 502, 503, 504)  # worth another try
LONGEST_WAIT = 30.0  # seconds before another try, whatever the server asks for
_LOCAL = ("localhost", "127.0.0.1", "::1")

T = TypeVar("T")


@dataclass(frozen=True)
class Reply:
    """A whole answer; `headers` with names in lower case."""

    status: int
    headers: dict[str, str]
    body: bytes


class Unreachable(InputError):
    """No answer, after all tries."""


class Connection:
    """Requests to one server, one at a time, at most so many a second. `transport` stands in for a network in tests."""

    def __init__(self, base: str, options: EndpointOptions, transport: Any = None) -> None:
        try:
            import httpx
        except ImportError:
            raise MissingExtra("httpx is not installed.", "pip install 'laocoon[api]'") from None
        self.base, self.options = base, options
        host = urlsplit(base).hostname or ""
        secret = os.environ.get(VARIABLE, "")
        if secret and not (secret.isascii() and secret.isprintable() and " " not in secret):
            raise InputError(f"{VARIABLE} holds characters that no key has.", "Check how it was set.")
        if secret and base.startswith("http:") and host not in _LOCAL:
            raise InputError(f"{VARIABLE} is set, and http://{printable(host, 80)} would carry it unencrypted.",
                             f"Use https, or unset {VARIABLE}.")
        self.keyed = bool(secret)
        self._loop = asyncio.new_event_loop()
        thread = threading.Thread(target=self._loop.run_forever, name="laocoon-endpoint", daemon=True)
        thread.start()
        headers = {"accept-encoding": "identity", **({"authorization": f"Bearer {secret}"} if secret else {})}
        self._client = httpx.AsyncClient(timeout=options.timeout, follow_redirects=False, trust_env=False,
                                         headers=headers, transport=transport)
        self._failures = (httpx.TimeoutException, httpx.HTTPError, httpx.InvalidURL, httpx.StreamError)
        self._free = 0.0  # when the next request may be sent
        self.close: Callable[[], object] = weakref.finalize(self, _end, self._client, self._loop, thread)

    def ask(self, method: str, path: str, body: bytes = b"", headers: dict[str, str] | None = None, *,
            patient: bool = True) -> Reply:
        """The answer, of whatever status; InputError where none came. patient: try again where that may help."""
        tries = self.options.retries + 1 if patient else 1
        for attempt in range(tries):
            last = attempt == tries - 1
            self._wait()
            try:
                reply = self._once(method, path, body, headers or {})
            except Unreachable:
                if last:
                    raise
                time.sleep(_pause(attempt, ""))
                continue
            if reply.status not in PASSING or last:
                return reply
            time.sleep(_pause(attempt, reply.headers.get("retry-after", "")))
        raise AssertionError("there is at least one try")

    def _wait(self) -> None:
        """The rate limit."""
        now = time.monotonic()
        if self._free > now:
            time.sleep(self._free - now)
        self._free = max(now, self._free) + 1 / self.options.rate

    def _once(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Reply:
        where, seconds = printable(self.base, 120), self.options.timeout
        try:
            return self._run(asyncio.wait_for(self._exchange(method, self.base + path, body, headers), seconds))
        except TimeoutError:
            raise Unreachable(f"{where} did not answer in {seconds:g} s.",
                              "Raise --timeout, or ask for less with --per-request.") from None
        except self._failures as error:
            raise _unreachable(error, where, seconds) from None

    async def _exchange(self, method: str, address: str, body: bytes, headers: dict[str, str]) -> Reply:
        where = printable(self.base, 120)
        async with self._client.stream(method, address, content=body, headers=headers) as answer:
            told = {k.lower(): v for k, v in answer.headers.items()}
            promised = told.get("content-length", "0")
            if promised.isdecimal() and int(promised) > LARGEST:
                raise BrokenFile(f"{where} announces an answer of {int(promised)} bytes.",
                                 f"At most {LARGEST} are read; ask for less with --per-request.")
            if told.get("content-encoding", "identity") != "identity":
                raise BrokenFile(f"{where} answers compressed, which was not asked for.", "Turn compression off there.")
            parts, size = [], 0
            async for part in answer.aiter_raw():
                size += len(part)
                if size > LARGEST:
                    raise BrokenFile(f"{where} answers with more than {LARGEST} bytes.",
                                     "That is no answer to what was asked.")
                parts.append(part)
            return Reply(answer.status_code, told, b"".join(parts))

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()


def _pause(attempt: int, wished: str) -> float:
    """Seconds before the next try: as the server wishes, or twice as long each time."""
    if wished.isdecimal() and len(wished) < 6:
        return min(float(wished), LONGEST_WAIT)
    return float(min(0.25 * 2**attempt, LONGEST_WAIT))


def _unreachable(error: Exception, where: str, seconds: float) -> Unreachable:
    """The sentence for what the network did."""
    kind, text = type(error).__name__, first_line(error, 120)
    low = text.lower()
    if "Timeout" in kind:
        return Unreachable(f"{where} did not answer in {seconds:g} s.", "Raise --timeout, or check the address.")
    if kind == "InvalidURL" or kind == "UnsupportedProtocol":
        return Unreachable(f"{where} is no address ({text}).", "Write it as http://HOST:PORT/v2/models/NAME.")
    if any(s in low for s in ("name or service", "nodename", "getaddrinfo", "name resolution", "no address")):
        return Unreachable(f"the host of {where} is not known ({text}).", "Check its name.")
    if "certificate" in low or "ssl" in low:
        return Unreachable(f"the certificate of {where} cannot be verified ({text}).",
                           "Have it signed by an authority that this machine trusts; it is not asked without.")
    if "refused" in low or "all connection attempts failed" in low:
        return Unreachable(f"{where} refuses connections.", "Check host and port, and that the server runs.")
    return Unreachable(f"{where} cannot be reached ({kind}: {text}).", "Check the address and the network.")


def _end(client: Any, loop: asyncio.AbstractEventLoop, thread: threading.Thread) -> None:
    """Close what is open, and the thread with it."""
    if loop.is_running():
        asyncio.run_coroutine_threadsafe(client.aclose(), loop).result(5)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(5)
    loop.close()
