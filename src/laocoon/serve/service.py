"""One request from its first byte to its answer, or to the sentence why there is none.

The order is what makes it safe: key, place in the queue, size, schema, guard, policy, upstream, audit line, answer.
Whatever goes wrong on the way, foreseen or not, ends in a refusal: the answer is the last thing that comes into being.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import time
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from laocoon.core.errors import InputError, LaocoonError
from laocoon.files.protocol import HEADER, Written, write_response
from laocoon.files.tensors import Named
from laocoon.files.wording import printable
from laocoon.serve.admission import Admission
from laocoon.serve.audit import Audit
from laocoon.serve.drift import Drift
from laocoon.serve.engine import Engine, Judged
from laocoon.serve.gathered import Gathered
from laocoon.serve.intake import LABEL, LOGITS, enough, read_body, understood
from laocoon.serve.keys import Key, Keys
from laocoon.serve.metrics import Metrics
from laocoon.serve.policies import Decided, apply, decide, parameters, refuse_flagged
from laocoon.serve.record import Record, Reply, Story, event, refusal
from laocoon.serve.refusal import AuditFailed, Refused
from laocoon.serve.settings import ServeOptions
from laocoon.serve.traces import Traces

LOG = logging.getLogger("laocoon.guard")


@dataclass(frozen=True, eq=False)
class Live:
    """An engine at work, with what belongs to it alone."""

    engine: Engine
    judging: Gathered[Tensor, Judged]
    drift: Drift


class Service:
    """`load` makes a new engine for a reload, in a thread; `renew` reads the keys again."""

    def __init__(
        self, engine: Engine, settings: ServeOptions, keys: Keys, audit: Audit, *,
        load: Callable[[], Engine] | None = None, renew: Callable[[], Keys] | None = None,
        traces: Traces | None = None,
    ) -> None:
        self.settings, self.keys, self.load, self.renew = settings, keys, load, renew
        self.metrics, self.traces = Metrics(), traces or Traces()
        self.admission = Admission(settings.concurrency, settings.queue, self.metrics)
        self.draining = False
        self._thinking = ThreadPoolExecutor(1, "laocoon-guard")  # one at a time: a model's passes share the cores
        self.record = Record(audit)
        self._asking = ThreadPoolExecutor(settings.concurrency, "laocoon-upstream")
        self._loading = asyncio.Lock()
        self.live = self._alive(engine)

    async def ready(self) -> bool:
        """Whether requests are answered. A log that failed is tried again here: nobody else may come to try it."""
        if not self.record.works and not self.draining:
            await self.event("audit tried again")
        ready = self.record.works and not self.draining
        self.metrics.ready.set(ready)
        return ready

    @property
    def largest_body(self) -> int:
        wanted = self.settings.max_body
        return wanted or enough(self.settings.max_batch, self.live.engine.facts)

    def _alive(self, engine: Engine) -> Live:
        if self.settings.policy == "purify" and engine.purify is None:
            raise InputError("--policy purify needs a purifier, and this guard has none.",
                             "Fit it with `laocoon guard fit --policy purify`.")
        f = engine.facts
        self.metrics.describe(self.settings.name, f.version, f.model, f.guard, self.settings.policy)
        judging: Gathered[Tensor, Judged] = Gathered(
            lambda batches: engine.judge(batches, self._timed), self._thinking, most=self.settings.max_batch,
            weight=len)
        return Live(engine, judging, Drift(f.calibrated, self.settings.drift_run))

    def _timed(self, samples: int, seconds: float) -> None:
        self.metrics.judging.observe(seconds)
        self.metrics.batch.observe(samples)

    def holder(self, headers: Mapping[str, str]) -> Key:
        """Refused (401) for whoever has no key."""
        key = self.keys.holder(headers.get("authorization", ""), headers.get("x-api-key", ""))
        if key is None:
            self.metrics.unauthenticated.inc()
            raise Refused(401, "no valid API key.", "Send `Authorization: Bearer SECRET`.",
                          headers={"www-authenticate": "Bearer"})
        return key

    async def reload(self, who: str) -> str:
        """Swap a new engine in; the version that answers from now on. Refused if it is broken; the old one stays."""
        if self.load is None:
            raise Refused(501, "this service was started without files to reload from.")
        async with self._loading:
            task = asyncio.ensure_future(self._loaded(self.load))
            await asyncio.wait([task])
            error = task.exception()
            if error is not None:
                self.metrics.reloads.labels("kept").inc()
                await self.event("reload refused", who)
                LOG.error("reload failed, %s goes on: %s", self.live.engine.facts.version, printable(error, 500))
                why = error.problem if isinstance(error, LaocoonError) else type(error).__name__
                raise Refused(422, f"the new model, guard or keys cannot be used, the old go on: {why}")
            self.live, self.keys = task.result()
            self.metrics.reloads.labels("swapped").inc()
            self._show_drift(self.live)
            await self.event("reloaded", who)
            LOG.info("reloaded, %s answers now", self.live.engine.facts.version)
            return self.live.engine.facts.version

    async def _loaded(self, load: Callable[[], Engine]) -> tuple[Live, Keys]:
        loop = asyncio.get_running_loop()
        keys = self.keys if self.renew is None else self.renew()
        engine = await loop.run_in_executor(None, load)
        await loop.run_in_executor(self._thinking, engine.warm)
        return self._alive(engine), keys

    def close(self) -> None:
        for pool in (self._thinking, self._asking):
            pool.shutdown(wait=True)
        self.record.close()

    async def infer(self, headers: Mapping[str, str], chunks: AsyncIterator[bytes], version: str | None) -> Reply:
        """Never raises for what a request or the guard does."""
        began, live = time.monotonic(), self.live
        try:
            key = self.holder(headers)
        except Refused as stranger:
            return refusal(stranger, "")
        story = Story(uuid.uuid4().hex, key.name, began)
        with self.traces.request(headers) as span:
            task = asyncio.ensure_future(self._answer(live, story, headers, chunks, version))
            await asyncio.wait([task], timeout=self.settings.request_seconds)
            error: BaseException | None
            if not task.done():
                task.cancel()
                error = Refused(504, f"the request took longer than {self.settings.request_seconds:g} s.")
            elif task.cancelled():
                error = Refused(503, "the service is shutting down.")
            else:
                error = task.exception()  # of whatever kind: without a result there is nothing to answer with
            if error is None:
                written = task.result()
                reply = Reply(200, written.body, {**written.headers, "x-request-id": story.request})
            else:
                reply = refusal(error, story.request)
            reply = await self._recorded(live, story, reply, error)
            span |= {"http.response.status_code": reply.status, "laocoon.request": story.request,
                     "laocoon.samples": len(story.samples), "laocoon.version": live.engine.facts.version}
        self.metrics.requests.labels(str(reply.status)).inc()
        self.metrics.latency.observe(time.monotonic() - began)
        return reply

    async def _answer(
        self, live: Live, story: Story, headers: Mapping[str, str], chunks: AsyncIterator[bytes], version: str | None
    ) -> Written:
        if version is not None and version != live.engine.facts.version:
            raise Refused(404, f"there is no version {printable(version, 60)!r}.", "See the model's metadata.")
        async with self.admission.place():
            body = await read_body(headers, chunks, self.largest_body)
            facts, local = live.engine.facts, live.engine.upstream is None
            asked, batch = understood(body, headers.get(HEADER), facts, self.settings.max_batch, local=local)
            del body
            story.client_request = None if asked.id is None else printable(asked.id, 128)
            story.samples = [{"sha256": hashlib.sha256(row.numpy().tobytes()).hexdigest()} for row in batch]
            with self.traces.step("judge"):
                judged = await live.judging.ask(batch)
            self._count(live, judged, story)
            refuse_flagged(self.settings.policy, judged)
            decided, outputs = await self._decided(live, batch, judged)
            for sample, decision in zip(story.samples, decided.decisions, strict=True):
                sample["decision"] = decision
            told = parameters(decided, self.settings.policy, story.request)
            names = {name for name, _ in asked.wishes} or {o.name for o in outputs}
            answers = apply(decided, [o for o in outputs if o.name in names])
            return write_response(asked, self.settings.name, live.engine.facts.version, answers, told)

    def _count(self, live: Live, judged: Judged, story: Story) -> None:
        for sample, p, score, tier, flagged in zip(
            story.samples, judged.p_values.tolist(), judged.scores.tolist(), judged.tier.tolist(),
            judged.flagged.tolist(), strict=True,
        ):
            sample.update(p_value=p, score=score, tier=tier, flagged=flagged)
            self.metrics.scored.labels("flagged" if flagged else "clear").inc()
            self.metrics.p_value.observe(p)
        quiet = live.drift.alarm_at is None
        live.drift.see(judged.p_values.tolist())
        if quiet and live.drift.alarm_at is not None:
            LOG.warning("the traffic has drifted from the calibration (sample %d)", live.drift.alarm_at)
        if live is self.live:
            self._show_drift(live)

    def _show_drift(self, live: Live) -> None:
        self.metrics.drift.set(live.drift.evidence)
        self.metrics.alarm.set(live.drift.alarm_at is not None)

    async def _decided(self, live: Live, batch: Tensor, judged: Judged) -> tuple[Decided, tuple[Named, ...]]:
        """Decisions and outputs; `log` alone lets the answer to a flagged input out."""
        policy, flagged = self.settings.policy, judged.flagged
        logits, cleared = judged.logits, torch.zeros_like(flagged)
        if policy == "purify" and bool(flagged.any()):
            rows = flagged.nonzero().flatten()
            loop = asyncio.get_running_loop()
            clean = await loop.run_in_executor(self._thinking, live.engine.purified, batch[rows])
            again = await live.judging.ask(clean)
            batch, logits = batch.clone(), logits.clone()
            batch[rows], logits[rows] = clean, again.logits
            cleared[rows] = ~again.flagged
        disagrees = [False] * len(batch)
        if live.engine.upstream is None:
            outputs = _outputs(logits)
        else:
            asked = torch.ones_like(flagged) if policy == "log" else ~flagged | cleared
            batch = torch.where(asked[:, None, None, None], batch, torch.zeros_like(batch))  # not shown to the upstream
            with self.traces.step("upstream"):
                outputs, other = await asyncio.get_running_loop().run_in_executor(
                    self._asking, live.engine.answered, batch, logits)
            disagrees = (other & asked).tolist()
            self.metrics.scored.labels("disagrees").inc(sum(disagrees))
        return decide(policy, judged, cleared, disagrees), outputs

    async def _recorded(self, live: Live, story: Story, reply: Reply, error: BaseException | None) -> Reply:
        """The reply, once its line is in the log; a refusal in its place where the line cannot be written."""
        failed = await self.record.write(story.line(live.engine.facts, self.settings, reply.status, error))
        if failed is not None:
            self.metrics.audit_failures.inc()
            why = failed.problem if isinstance(failed, AuditFailed) else "the audit log cannot be written."
            return refusal(Refused(503, why, headers={"retry-after": "5"}), story.request)
        for sample in story.samples:
            if sample["decision"] != "refused":
                self.metrics.decided.labels(sample["decision"]).inc()
        return reply

    async def event(self, what: str, key: str = "") -> bool:
        """A line about the service itself; whether it could be written."""
        return await self.record.write(event(what, key, self.live.engine.facts, self.settings)) is None


def _outputs(logits: Tensor) -> tuple[Named, ...]:
    return (Named(LOGITS, "FP32", logits.numpy()), Named(LABEL, "INT64", logits.argmax(1).numpy()))
