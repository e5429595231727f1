"""The process: a port, signals, and an end that loses nothing.

SIGHUP loads model and guard anew. SIGTERM and SIGINT: not ready any more, after `drain_seconds` the port closes, what
is in flight is answered, the audit log is closed; a second signal ends at once.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import Any

from laocoon.core.errors import InputError, LaocoonError, MissingExtra
from laocoon.serve.app import application
from laocoon.serve.service import Service

LOG = logging.getLogger("laocoon.guard")


def serve(service: Service, started: Callable[[str], None]) -> None:
    """Until a signal ends it. `started` is told the address once the port is open."""
    try:
        import uvicorn
    except ImportError:
        raise MissingExtra("uvicorn is not installed.", "pip install 'laocoon[serve]'") from None
    settings = service.settings

    class Server(uvicorn.Server):
        """Drains before it closes."""

        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets)
            if self.started:
                loop = asyncio.get_running_loop()
                loop.add_signal_handler(signal.SIGHUP, lambda: _keep(loop.create_task(reload(service))))
                place = self.servers[0].sockets[0].getsockname()
                started(f"http://{place[0] if ':' not in place[0] else f'[{place[0]}]'}:{place[1]}")

        def handle_exit(self, sig: int, frame: Any) -> None:
            # Not the parent's: it would raise the signal again at the end, and a drained service has not failed.
            if service.draining or settings.drain_seconds == 0:
                self.force_exit, self.should_exit = self.should_exit, True
            else:
                loop.call_soon_threadsafe(loop.call_later, settings.drain_seconds, self.close_port)
            service.draining = True

        def close_port(self) -> None:
            self.should_exit = True

    config = uvicorn.Config(
        application(service), host=settings.host, port=settings.port, log_config=None, access_log=False,
        server_header=False, date_header=False, timeout_graceful_shutdown=max(1, int(settings.shutdown_seconds)),
        timeout_keep_alive=5, h11_max_incomplete_event_size=65536, ws="none", lifespan="on", http="h11", loop="asyncio",
    )
    loop = asyncio.new_event_loop()
    try:
        loop.run_until_complete(_bound(Server(config)))
    finally:
        loop.close()


async def _bound(server: Any) -> None:
    try:
        await server.serve()
    except SystemExit:  # how uvicorn says that the port cannot be had
        raise InputError(f"the port {server.config.host}:{server.config.port} cannot be opened.",
                         "Choose another with --port.") from None
    if not server.started:
        raise InputError("the service could not start: the audit log cannot be written.", "Make room for it.")


_TASKS: set[asyncio.Task[None]] = set()


def _keep(task: asyncio.Task[None]) -> None:
    """The loop holds tasks weakly."""
    _TASKS.add(task)
    task.add_done_callback(_TASKS.discard)


async def reload(service: Service) -> None:
    """What SIGHUP does: the log first, since a rotated one is the more frequent reason."""
    try:
        await service.record.reopen()
        await service.reload("SIGHUP")
    except LaocoonError as error:
        LOG.error("SIGHUP: %s", error)
