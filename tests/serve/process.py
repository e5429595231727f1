"""A service as a process of its own, around the guard of these tests: python -m tests.serve.process AUDIT SECONDS …"""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

from tests.serve.conftest import BrightCorner, facts

from laocoon.serve.audit import Audit
from laocoon.serve.engine import Engine
from laocoon.serve.keys import Keys
from laocoon.serve.run import serve
from laocoon.serve.service import Service
from laocoon.serve.settings import ServeOptions

if __name__ == "__main__":
    audit, seconds, options = Path(sys.argv[1]), float(sys.argv[2]), json.loads(sys.argv[3])
    settings = ServeOptions(port=0, policy="log", **options)
    watcher = BrightCorner(lambda batch: time.sleep(seconds if len(batch) else 0))
    reloads = iter(range(10, 99))
    service = Service(Engine(watcher, facts()), settings, Keys(()), Audit(audit, sync=True, largest=2**30),
                      load=lambda: Engine(BrightCorner(), facts(guard=f"{next(reloads)}" * 32)))
    serve(service, lambda address: print(address, flush=True))
