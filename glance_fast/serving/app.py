"""What a server answers: ``POST /score``, ``GET /health``, ``GET /metrics``."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import math
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.requests import ClientDisconnect

import glance_fast
from glance_fast.calibration import verdict
from glance_fast.data.depth import unlike
from glance_fast.data.images import decode_image, encode_png
from glance_fast.data.roi import resize_scores
from glance_fast.data.score_maps import encode_tiff
from glance_fast.errors import ImageError
from glance_fast.evaluation.overlay import display_range, heat, scale
from glance_fast.evaluation.regions import find_regions
from glance_fast.model import NOT_FINITE, Glance
from glance_fast.serving.batcher import Batcher, Scored
from glance_fast.serving.body import FIELD, Refused, image_in, receive
from glance_fast.serving.metrics import CONTENT_TYPE, Metrics
from glance_fast.tiles import prepared

log = logging.getLogger(__name__)

# Seconds after which a client that was refused may try again.
RETRY = 1
# Seconds in which a body must come.
PATIENCE = 30.0
# What OpenAPI says of the body, which FastAPI does not read for us.
BODY = {
    "required": True,
    "content": {
        "image/*": {"schema": {"type": "string", "format": "binary"}},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {FIELD: {"type": "string", "format": "binary"}},
                "required": [FIELD],
            }
        },
    },
}


@dataclass(frozen=True)
class Limits:
    """What a server takes.

    Attributes
    ----------
    queue : int
        Images received or waiting at a time.
    body : int
        Bytes of a request.
    """

    queue: int = 64
    body: int = 32 << 20


class Service:
    """From the body of a request to its answer.

    Parameters
    ----------
    model : Glance
        Scored with by the batcher alone.
    batcher : Batcher
    metrics : Metrics
    limits : Limits
    """

    def __init__(self, model: Glance, batcher: Batcher, metrics: Metrics, limits: Limits) -> None:
        self.model, self.batcher, self.metrics, self.limits = model, batcher, metrics, limits
        # Counted by the event loop's thread alone.
        self.waiting = 0
        self._pool = ThreadPoolExecutor(2, thread_name_prefix="glance-images")

    async def score(self, request: Request, kind: str | None) -> Response:
        """Answer a request for a score; count it."""
        began, outcome = time.monotonic(), "failed"
        try:
            said = await self._score(request, kind)
            outcome = "scored"
            return Response(said, media_type="application/json")
        except Refused as refused:
            outcome = refused.outcome
            answer = _error(refused.status, refused.reason)
            if refused.status == 429:
                answer.headers["Retry-After"] = str(RETRY)
            return answer
        except ClientDisconnect:
            outcome = "gone"
            return Response(status_code=499)
        except asyncio.CancelledError:
            outcome = "gone"
            raise
        except Exception:
            log.exception("an image could not be scored")
            return _error(500, "the image could not be scored; the server's log says why")
        finally:
            self.metrics.answered(outcome, time.monotonic() - began)

    async def _score(self, request: Request, kind: str | None) -> bytes:
        if self.waiting >= self.limits.queue:
            raise Refused(429, "busy", f"{self.waiting} images wait already; try again in {RETRY} s")
        self.waiting += 1
        try:
            loop = asyncio.get_running_loop()
            body = await receive(request.stream(), self.limits.body, PATIENCE)
            data = image_in(body, request.headers.get("content-type", ""))
            del body
            image, shape, remarks = await loop.run_in_executor(self._pool, self._decode, data)
            scored = await asyncio.wrap_future(self.batcher.submit(image))
            return await loop.run_in_executor(self._pool, self._answer, scored, shape, remarks, kind)
        finally:
            self.waiting -= 1

    def _decode(self, data: bytes) -> tuple[np.ndarray, tuple[int, int], tuple[str, ...]]:
        """An image as the model takes it, its height and width, and what to say of its depth."""
        try:
            image = decode_image(data)
            ready = prepared(self.model, image)
        except ImageError as error:
            raise Refused(422, "damaged", error.reason) from error
        return ready, image.shape[:2], unlike(image, self.model.calibration.white).remarks()

    def _answer(
        self, scored: Scored, shape: tuple[int, int], remarks: tuple[str, ...], kind: str | None
    ) -> bytes:
        """What is said of an image of that height and width."""
        if not (math.isfinite(scored.score) and np.isfinite(scored.map).all()):
            raise Refused(500, "failed", NOT_FINITE)
        calibration = self.model.calibration
        answer: dict[str, Any] = {
            **verdict(calibration, scored.score)._asdict(),
            "height": shape[0],
            "width": shape[1],
            "regions": [],
        }
        if remarks:
            answer["remarks"] = remarks
        above = scored.map.max() > calibration.pixel_threshold
        # Resizing a map makes none of its values larger: most have no region, and are not resized for it.
        if above or kind:
            full = resize_scores(scored.map, shape, scored.inside)
            found = find_regions(full, calibration.pixel_threshold) if above else []
            answer["regions"] = [region.as_dict() for region in found]
            if kind == "tiff":
                answer["map"] = base64.b64encode(encode_tiff(full)).decode()
            elif kind == "png":
                low, high, _ = display_range(calibration, scored.map[None])
                answer["map"] = base64.b64encode(encode_png(heat(scale(full, low, high)))).decode()
        return json.dumps(answer, allow_nan=False).encode()

    def close(self) -> None:
        """End its threads."""
        self._pool.shutdown()


def build_app(service: Service) -> FastAPI:
    """The routes.

    Parameters
    ----------
    service : Service
        Answers.

    Returns
    -------
    FastAPI
        With a description of itself at ``/openapi.json``; no page of it, which would load scripts from
        elsewhere.
    """
    app = FastAPI(title="glance-fast", version=glance_fast.__version__, docs_url=None, redoc_url=None)

    @app.post("/score", openapi_extra={"requestBody": BODY})
    async def score(request: Request, map: Literal["png", "tiff"] | None = None) -> Response:
        """Score an image: the body itself, or field `image` of a form.

        The answer has score, above, anomalous, height and width of the image, regions above the model's
        threshold of pixels (box, area, peak, centroid in the image's pixels) and, with `map`, the map of the
        image's size in base64: png in colours, tiff as float32. Where the image is of another depth than the
        photographs in training, remarks say what was made of that.
        """
        return await service.score(request, map)

    @app.get("/health")
    async def health() -> Response:
        """Whether images are scored, and by what."""
        calibration, runs = service.model.calibration, service.batcher.runs
        thresholds = {"threshold": calibration.threshold, "pixel_threshold": calibration.pixel_threshold}
        about = {
            "status": "ok" if runs else "the thread that scores has ended",
            "version": glance_fast.__version__,
            "image_size": list(service.model.config.image_size),
            **{name: value if math.isfinite(value) else None for name, value in thresholds.items()},
            "waiting": service.waiting,
        }
        return Response(json.dumps(about), 200 if runs else 503, media_type="application/json")

    @app.get("/metrics")
    async def metrics() -> Response:
        """Counts, for Prometheus."""
        return Response(service.metrics.text(service.waiting), media_type=CONTENT_TYPE)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        return _error(422, f"{first['loc'][-1]}: {first['msg']}")

    return app


def _error(status: int, reason: str) -> Response:
    return Response(json.dumps({"error": reason}), status, media_type="application/json")
