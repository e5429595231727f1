"""The addresses of the service: the Open Inference Protocol v2, /metrics, and one to reload.

Annotations are not postponed in this module: FastAPI reads them, and what they name is imported inside of a function.
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from laocoon import __version__
from laocoon.core.errors import MissingExtra
from laocoon.files.protocol import EXTENSIONS, ModelMetadata, ServerMetadata, TensorMetadata
from laocoon.files.wording import printable
from laocoon.serve.intake import INPUT, LABEL, LOGITS
from laocoon.serve.record import Reply
from laocoon.serve.refusal import Refused
from laocoon.serve.service import Service


def application(service: Service) -> Any:
    """An ASGI application."""
    try:
        from fastapi import FastAPI, Request, Response
        from fastapi.responses import JSONResponse
        from starlette.exceptions import HTTPException
    except ImportError:
        raise MissingExtra("fastapi is not installed.", "pip install 'laocoon[serve]'") from None

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        if not await service.event("started"):
            raise RuntimeError("the audit log cannot be written")
        yield
        await service.event("stopped")
        service.close()

    # No pages of documentation: they would be fetched from elsewhere, and say more than a stranger needs.
    app = FastAPI(title="Laocoon guard", version=__version__, docs_url=None, redoc_url=None, openapi_url=None,
                  lifespan=lifespan, redirect_slashes=False)

    def sent(reply: Reply) -> Response:
        if isinstance(reply.body, bytes):
            return Response(reply.body, reply.status, dict(reply.headers))
        return JSONResponse(dict(reply.body), reply.status, dict(reply.headers))

    def no(error: Refused) -> Response:
        return JSONResponse({"error": printable(error, 1000)}, error.status, error.headers)

    @app.exception_handler(Refused)
    async def refused(_: Request, error: Refused) -> Response:
        return no(error)

    @app.exception_handler(HTTPException)
    async def elsewhere(_: Request, error: HTTPException) -> Response:
        return no(Refused(error.status_code, f"{error.detail}.", headers=error.headers))

    @app.exception_handler(Exception)
    async def broken(_: Request, error: Exception) -> Response:
        return no(Refused(500, "the service failed on this request, so there is no answer."))

    def known(name: str, version: str | None = None) -> None:
        if name != service.settings.name:
            raise Refused(404, f"there is no model {printable(name, 60)!r}.")
        if version is not None and version != service.live.engine.facts.version:
            raise Refused(404, f"there is no version {printable(version, 60)!r}.", "See the model's metadata.")

    # Health is open: probes have no keys, and nothing secret is told.
    @app.get("/v2/health/live")
    async def live() -> dict[str, bool]:
        return {"live": True}

    @app.get("/v2/health/ready")
    async def ready() -> Response:
        well = await service.ready()
        return JSONResponse({"ready": well}, 200 if well else 503)

    @app.get("/v2/health")
    async def health() -> dict[str, Any]:
        return {"live": True, "ready": await service.ready(), "draining": service.draining,
                "audit": service.record.works, "version": service.live.engine.facts.version,
                "drift": service.live.drift.facts()}

    @app.get("/v2")
    async def server(request: Request) -> ServerMetadata:
        service.holder(request.headers)
        return ServerMetadata(name="laocoon-guard", version=__version__, extensions=list(EXTENSIONS))

    @app.get("/v2/models/{name}")
    @app.get("/v2/models/{name}/versions/{version}")
    async def model(request: Request, name: str, version: str | None = None) -> ModelMetadata:
        service.holder(request.headers)
        known(name, version)
        facts = service.live.engine.facts
        tensor = TensorMetadata(name=INPUT, datatype=facts.takes.datatypes[0], shape=[-1, *facts.takes.shape])
        outputs = [TensorMetadata(name=LOGITS, datatype="FP32", shape=[-1, facts.classes]),
                   TensorMetadata(name=LABEL, datatype="INT64", shape=[-1])]
        return ModelMetadata(
            name=name, versions=[facts.version], platform="laocoon_guard", inputs=[tensor],
            outputs=outputs if service.live.engine.upstream is None else list(service.live.engine.upstream.outputs),
            parameters={"laocoon_policy": service.settings.policy, "laocoon_alpha": facts.alpha,
                        "laocoon_model_sha256": facts.model, "laocoon_guard_sha256": facts.guard})

    @app.get("/v2/models/{name}/ready")
    @app.get("/v2/models/{name}/versions/{version}/ready")
    async def model_ready(request: Request, name: str, version: str | None = None) -> Response:
        service.holder(request.headers)
        known(name, version)
        well = await service.ready()
        return JSONResponse({"name": name, "ready": well}, 200 if well else 503)

    @app.post("/v2/models/{name}/infer", response_model=None)
    @app.post("/v2/models/{name}/versions/{version}/infer", response_model=None)
    async def infer(request: Request, name: str, version: str | None = None) -> Response:
        if name != service.settings.name:
            service.holder(request.headers)
            known(name)
        return sent(await service.infer(request.headers, request.stream(), version))

    @app.get("/metrics")
    async def metrics(request: Request) -> Response:
        service.holder(request.headers)
        await service.ready()
        return Response(service.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.post("/v2/admin/reload")
    async def reload(request: Request) -> dict[str, str]:
        key = service.holder(request.headers)
        if not key.admin:
            raise Refused(403, "this key may not reload.", "Use one that is marked `admin`.")
        return {"version": await service.reload(key.name)}

    return app
