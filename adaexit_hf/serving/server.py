"""An HTTP server around the engine, which speaks text-embeddings-inference's interface for classifiers and rerankers.

Paths, fields, error bodies and status codes are those of its openapi description, so that its clients work unchanged.
Fields of our own are optional. Needs the extra `serve`.
"""

import asyncio
import hmac
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from ..evaluation.certificate_file import SealedCertificate
from ..utils.imports import needs
from ..version import __version__
from .backends import TruncationSide
from .engine import Answer, EarlyExitEngine, EngineClosedError, InferenceError, QueueFullError, TextTooLongError
from .shadow import ShadowTraffic

with needs("serve"):
    from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
    from prometheus_client.exposition import CONTENT_TYPE_LATEST
    from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
    from prometheus_client.registry import Collector
    from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator
    from starlette.applications import Starlette
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect, Request
    from starlette.responses import JSONResponse, Response
    from starlette.routing import Route

Text = str | tuple[str, str]
Handler = Callable[[Request], Awaitable[Response]]
# Upper bounds of the buckets of histograms: seconds of a request, and rows of a batch.
SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True, kw_only=True)
class ServerSettings:
    """What a server tells and allows.

    Attributes:
        model_id: name of the model, for `/info`.
        precision: what the model computes in, for `/info`.
        max_body_bytes: largest body of a request.
        max_client_batch_size: largest number of texts in a request.
        auto_truncate: whether texts that are too long are truncated if a request does not say.
        allow_thresholds: whether a request may bring an exit threshold.
        api_key: the key that requests must bring, as `Authorization: Bearer KEY`. Default: none.
        body_seconds: seconds in which the body of a request must have arrived.
        certificate: the certificate that holds for what is served, for `/info`. Default: none.
    """

    model_id: str
    precision: str
    max_body_bytes: int = 2_000_000
    max_client_batch_size: int = 32
    auto_truncate: bool = True
    allow_thresholds: bool = False
    api_key: str | None = None
    body_seconds: float = 30.0
    certificate: SealedCertificate | None = None


class RefusedError(Exception):
    """A request that is not answered.

    Args:
        status: HTTP status.
        error_type: its kind, one of those of text-embeddings-inference.
        message: what is wrong.
    """

    def __init__(self, status: int, error_type: str, message: str) -> None:
        super().__init__(message)
        self.status, self.error_type = status, error_type

    def response(self) -> JSONResponse:
        """Return the error as text-embeddings-inference writes it."""
        return JSONResponse({"error": str(self), "error_type": self.error_type}, self.status)


class Inputs(NamedTuple):
    """The texts of a request, and whether they came as a batch."""

    texts: list[Text]
    batch: bool


def inputs_of(value: Any) -> Inputs:
    """Read the field `inputs`: a text, a pair of texts, or a batch of lists with one or two texts each.

    Args:
        value: the field.

    Raises:
        ValueError: it is something else.

    Examples:
        >>> inputs_of("a"), inputs_of(["a", "b"])
        (Inputs(texts=['a'], batch=False), Inputs(texts=[('a', 'b')], batch=False))
        >>> inputs_of([["a"], ["b", "c"]])
        Inputs(texts=['a', ('b', 'c')], batch=True)
    """

    def text_of(item: Any) -> Text:
        texts = [item] if isinstance(item, str) else item
        if isinstance(texts, list) and len(texts) in (1, 2) and all(isinstance(text, str) for text in texts):
            return texts[0] if len(texts) == 1 else (texts[0], texts[1])
        raise ValueError(
            f"got {item!r:.80}; pass a text, a pair of texts ['...', '...'], or a batch [['...'], ['...', '...'], ...]"
        )

    if isinstance(value, list) and all(isinstance(item, list) for item in value):
        return Inputs([text_of(item) for item in value], True)
    return Inputs([text_of(value)], False)


class _Options(BaseModel):
    """The fields that all requests with texts may have; unknown ones are ignored, as clients send some."""

    model_config = ConfigDict(strict=True)

    truncate: bool | None = None
    truncation_direction: Literal["Left", "left", "Right", "right"] | None = None
    raw_scores: bool = False
    exit_threshold: float | list[float] | None = None
    deadline_ms: float | None = Field(default=None, ge=0, le=3_600_000)
    return_exit_layer: bool = False

    @property
    def truncation_side(self) -> TruncationSide | None:
        """The end at which texts that are too long are cut, as the engine calls it; None if the request has none."""
        if self.truncation_direction is None:
            return None
        return "left" if self.truncation_direction.lower() == "left" else "right"


class _Parameters(BaseModel):
    """The field `parameters` of the Hub's own interface, as `huggingface_hub.InferenceClient` sends it."""

    model_config = ConfigDict(strict=True)

    top_k: int | None = Field(default=None, ge=1)
    function_to_apply: Literal["none", "sigmoid", "softmax"] | None = None


class PredictRequest(_Options):
    """The body of `POST /predict`."""

    inputs: Any
    parameters: _Parameters | None = None

    @field_validator("inputs")
    @classmethod
    def _read(cls, value: Any) -> Inputs:
        return inputs_of(value)


class RerankRequest(_Options):
    """The body of `POST /rerank`."""

    query: str
    texts: list[str]
    return_text: bool = False


def create_app(
    engine: EarlyExitEngine, config: Any, settings: ServerSettings, shadow: ShadowTraffic | None = None
) -> Starlette:
    """Return the ASGI application, with the engine as `app.state.engine`; it closes the engine when it is shut down.

    Args:
        engine: the engine.
        config: the model's config: labels, method, exit layers, threshold.
        settings: what the server tells and allows.
        shadow: watches whether the certificate still holds. Default: nothing does.
    """
    server = _Server(engine, config, settings, shadow)
    main = server.rerank if config.num_labels == 1 else server.predict
    routes = [
        Route("/predict", server.route(server.predict), methods=["POST"]),
        Route("/rerank", server.route(server.rerank), methods=["POST"]),
        Route("/", server.route(main), methods=["POST"]),
        Route("/info", server.route(server.info), methods=["GET"]),
        Route("/metrics", server.metrics, methods=["GET"]),
        Route("/health", server.health, methods=["GET"]),
        Route("/", server.health, methods=["GET"]),
    ]

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        yield
        await engine.__aexit__()

    def plain(_: Request, error: Any) -> Response:
        return RefusedError(error.status_code, "Validation", str(error.detail)).response()

    def unexpected(_: Request, error: Exception) -> Response:  # its traceback is logged
        return RefusedError(500, "Backend", f"the server has failed with {type(error).__name__}").response()

    handlers: dict[Any, Any] = {HTTPException: plain, Exception: unexpected}
    app = Starlette(routes=routes, lifespan=lifespan, exception_handlers=handlers)
    app.state.engine = engine
    return app


class _Server:
    """The handlers of the paths."""

    def __init__(
        self, engine: EarlyExitEngine, config: Any, settings: ServerSettings, shadow: ShadowTraffic | None
    ) -> None:
        self.engine, self.config, self.settings, self.shadow = engine, config, settings, shadow
        self.labels = [config.id2label[index] for index in range(config.num_labels)]
        self.registry = CollectorRegistry()
        self.registry.register(_EngineMetrics(engine))
        if shadow is not None:
            self.registry.register(_ShadowMetrics(shadow))
        self.requests = Counter("adaexit_requests", "Requests", ["path", "status"], registry=self.registry)
        self.seconds = Histogram(
            "te_request_duration", "Seconds of answered requests", buckets=SECONDS, registry=self.registry
        )

    def route(self, handler: Handler) -> Handler:
        """Return a handler that checks the key, turns errors into responses, and counts."""

        async def handle(request: Request) -> Response:
            began = time.perf_counter()
            try:
                self._check_key(request)
                response = await handler(request)
                self.seconds.observe(time.perf_counter() - began)
            except RefusedError as error:
                response = error.response()
            except ClientDisconnect:
                response = Response(status_code=499)  # nobody reads it
            self.requests.labels(request.url.path, str(response.status_code)).inc()
            return response

        return handle

    def _check_key(self, request: Request) -> None:
        key = self.settings.api_key
        given = request.headers.get("authorization", "")
        if key is not None and not hmac.compare_digest(given.encode(), f"Bearer {key}".encode()):
            raise RefusedError(
                401, "Validation", "authorization: missing or wrong; pass the header Authorization: Bearer KEY"
            )

    # With texts

    async def predict(self, request: Request) -> Response:
        """`POST /predict`: the score of every label, the largest first."""
        asked = await self._read(request, PredictRequest)
        texts, batch = asked.inputs
        pairs = getattr(
            self.config, "pairs", None
        )  # the code of an earlier version, saved with a checkpoint, lacks it
        if not batch and isinstance(texts[0], tuple) and pairs is False:
            message = "got two texts in a list, a pair, which this model does not read; pass a batch as"
            raise RefusedError(422, "Validation", f'inputs: {message} [["..."], ["..."]]')
        answers = await self._answers(request, texts, asked)
        parameters = asked.parameters or _Parameters()
        function = "none" if asked.raw_scores else parameters.function_to_apply
        found = []
        for answer in answers:
            scores = self._scores(answer, function)
            order = sorted(range(len(scores)), key=lambda label: -scores[label])
            named = [{"label": self.labels[label], "score": scores[label]} for label in order]
            found.append([each | self._extra(answer, asked) for each in named[: parameters.top_k]])
        # The Hub's own interface has a list for each text, also for a single one.
        return JSONResponse(found if batch or asked.parameters is not None else found[0])

    async def rerank(self, request: Request) -> Response:
        """`POST /rerank`: texts in the order of their score for a query."""
        asked = await self._read(request, RerankRequest)
        if self.config.num_labels != 1:
            raise RefusedError(424, "Backend", "model is not a re-ranker model: it has several labels; use /predict")
        answers = await self._answers(request, [(asked.query, text) for text in asked.texts], asked)
        ranks: list[dict[str, Any]] = []
        for index, answer in enumerate(answers):
            (score,) = self._scores(answer, "none" if asked.raw_scores else None)
            text = {"text": asked.texts[index]} if asked.return_text else {}
            ranks.append({"index": index, "score": score} | text | self._extra(answer, asked))
        return JSONResponse(sorted(ranks, key=lambda rank: -rank["score"]))

    async def _read(self, request: Request, kind: Any) -> Any:
        """Read and check the body."""
        try:
            body = await asyncio.wait_for(self._body(request), self.settings.body_seconds)
        except asyncio.TimeoutError:
            seconds = self.settings.body_seconds
            raise RefusedError(408, "Validation", f"the body did not arrive within {seconds:g} seconds") from None
        try:
            asked = kind.model_validate_json(body)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            place = ".".join(map(str, first["loc"])) or "body"
            message = first["msg"].removeprefix("Value error, ")
            raise RefusedError(422, "Validation", f"{place}: {message}") from None
        if asked.exit_threshold is not None and not self.settings.allow_thresholds:
            message = "exit_threshold: is not allowed by this server; start it with --allow_thresholds"
            raise RefusedError(422, "Validation", message)
        if asked.exit_threshold is not None:
            try:
                self.engine.backend.thresholds_in_use(asked.exit_threshold, None)
            except ValueError as error:
                message = str(error).replace(", or None for full depth", "")  # null is the server's own threshold
                raise RefusedError(422, "Validation", message) from None
        return asked

    async def _body(self, request: Request) -> bytes:
        limit, body = self.settings.max_body_bytes, bytearray()
        async for chunk in request.stream():
            body += chunk
            if len(body) > limit:
                raise RefusedError(413, "Validation", f"the body has more than {limit} bytes, the most allowed")
        return bytes(body)

    async def _answers(self, request: Request, texts: list[Text], asked: _Options) -> list[Answer]:
        """Let the engine answer; if the client goes away or one text fails, the others are taken out."""
        most = self.settings.max_client_batch_size
        if not texts:
            raise RefusedError(400, "Empty", "batch is empty")
        if len(texts) > most:
            raise RefusedError(413, "Validation", f"batch size {len(texts)} is more than {most}, the most allowed")
        deadline = None if asked.deadline_ms is None else asked.deadline_ms / 1000
        truncate = self.settings.auto_truncate if asked.truncate is None else asked.truncate
        tasks = [
            asyncio.ensure_future(
                self.engine.classify(
                    text,
                    exit_threshold=asked.exit_threshold,
                    deadline=deadline,
                    truncate=truncate,
                    truncation_side=asked.truncation_side,
                )
            )
            for text in texts
        ]
        gone = asyncio.ensure_future(_disconnected(request))
        waiting: set[asyncio.Future[Any]] = {*tasks}
        try:
            while waiting:
                done, _ = await asyncio.wait({*waiting, gone}, return_when=asyncio.FIRST_COMPLETED)
                if gone in done:
                    raise ClientDisconnect
                for task in done:
                    task.result()  # raises what it raised
                waiting -= done
            answers = [task.result() for task in tasks]
        except QueueFullError as error:
            raise RefusedError(429, "Overloaded", str(error)) from error
        except EngineClosedError as error:
            raise RefusedError(503, "Unhealthy", str(error)) from error
        except TextTooLongError as error:
            longest = self.engine.backend.max_tokens
            message = f'text: has more than {longest} tokens, the most allowed; shorten it, or send "truncate": true'
            raise RefusedError(413, "Validation", message) from error
        except InferenceError as error:
            raise RefusedError(424, "Backend", str(error)) from error
        except (TypeError, ValueError) as error:
            raise RefusedError(422, "Tokenizer", str(error)) from error
        finally:
            for future in (*tasks, gone):
                if not future.cancel() and not future.cancelled():
                    future.exception()  # else asyncio would log that nobody has looked at it
        if not all(bool(answer.logits.isfinite().all()) for answer in answers):
            raise RefusedError(424, "Backend", "score is NaN or infinite")
        if self.shadow is not None and asked.exit_threshold is None:
            self.shadow.offer(texts, answers, truncate, asked.truncation_side)
        return answers

    def _scores(self, answer: Answer, function: str | None) -> list[float]:
        """Return the score of every label: probabilities, or what the model computed with "none"."""
        if function == "none":
            return answer.logits.tolist()
        if function is None:
            function = "sigmoid" if self.config.num_labels == 1 or self.config.multi_label else "softmax"
        return (answer.logits.sigmoid() if function == "sigmoid" else answer.logits.softmax(dim=-1)).tolist()

    def _extra(self, answer: Answer, asked: _Options) -> dict[str, Any]:
        """Return what the answer has only for those who ask."""
        extra: dict[str, Any] = {"exit_layer": answer.exit_layer} if asked.return_exit_layer else {}
        return extra | ({} if asked.deadline_ms is None else {"deadline_passed": answer.deadline_passed})

    # About the server

    async def info(self, _: Request) -> Response:
        """`GET /info`: what is served, with which limits."""
        config, settings, backend = self.config, self.settings, self.engine.backend
        names = {str(index): label for index, label in enumerate(self.labels)}
        kind = {"id2label": names, "label2id": {label: index for index, label in enumerate(self.labels)}}
        facts = {
            "model_id": settings.model_id,
            "model_sha": None,
            "model_dtype": settings.precision,
            "served_model_name": settings.model_id,
            "model_type": {"reranker" if config.num_labels == 1 else "classifier": kind},
            "max_concurrent_requests": self.engine.max_texts,
            "max_input_length": backend.max_tokens,
            "max_batch_tokens": backend.batch_tokens,
            "max_batch_requests": None,
            "max_client_batch_size": settings.max_client_batch_size,
            "auto_truncate": settings.auto_truncate,
            "tokenization_workers": 1,
            "version": __version__,
            "sha": None,
            "docker_label": None,
        }
        early_exit = {
            "method": config.model_type,
            "exit_layers": list(backend.exit_layers),
            "exit_criterion": config.exit_criterion,
            "exit_threshold": config.exit_threshold,
            "allow_thresholds": settings.allow_thresholds,
            "certificate": self._certificate(),
        }
        return JSONResponse(facts | {"early_exit": early_exit})

    def _certificate(self) -> dict[str, Any] | None:
        """Return what is promised, and what the shadow traffic says of it."""
        sealed = self.settings.certificate
        if sealed is None:
            return None
        certificate = sealed.certificate
        facts: dict[str, Any] = {"guarantees": [str(guarantee) for guarantee in certificate.guarantees]}
        facts |= {"confidence": certificate.confidence, "threshold": certificate.exit_threshold, "n": certificate.n}
        return facts | ({} if self.shadow is None else {"alarm": self.shadow.monitor.alarm})

    async def metrics(self, _: Request) -> Response:
        """`GET /metrics`, for Prometheus."""
        return Response(generate_latest(self.registry), media_type=CONTENT_TYPE_LATEST)

    async def health(self, _: Request) -> Response:
        """`GET /health`: whether texts are answered."""
        return Response() if self.engine.alive else RefusedError(503, "Unhealthy", "unhealthy").response()


async def _disconnected(request: Request) -> None:
    """Wait until the client has gone; its request has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


class _EngineMetrics(Collector):
    """The engine's statistics, read whenever Prometheus asks."""

    def __init__(self, engine: EarlyExitEngine) -> None:
        self.engine = engine

    def collect(self) -> Iterator[Metric]:
        """Return all metrics."""
        found = self.engine.statistics()
        yield GaugeMetricFamily("te_queue_size", "Texts in the engine", value=found.inside)
        waiting = GaugeMetricFamily(
            "adaexit_waiting_texts", "Texts that wait, by layers that they have run", labels=["layers"]
        )
        for layers, count in found.waiting.items():
            waiting.add_metric([str(layers)], count)
        yield waiting
        yield _histogram("adaexit_exit_layer", "Layers run per answer", found.exits, self.engine.backend.exit_layers)
        yield _histogram("te_batch_next_size", "Rows per step", found.batches, ROWS)
        counts = {
            "answered": "Texts that were answered",
            "cancelled": "Texts whose client went away",
            "failed": "Texts for which the model raised an error",
            "refused": "Texts that were refused, since the engine was full",
            "deadlines_passed": "Answers because of a deadline",
            "not_finite": "Answers with NaN or infinite logits",
        }
        for name, text in counts.items():
            yield CounterMetricFamily(f"adaexit_texts_{name}", text, value=getattr(found, name))


class _ShadowMetrics(Collector):
    """What the monitor of a certificate has seen, read whenever Prometheus asks."""

    def __init__(self, shadow: ShadowTraffic) -> None:
        self.shadow = shadow

    def collect(self) -> Iterator[Metric]:
        """Return all metrics."""
        monitor = self.shadow.monitor
        yield CounterMetricFamily("adaexit_shadow_texts", "Texts that also ran at full depth", value=monitor.n)
        yield CounterMetricFamily(
            "adaexit_shadow_left_out", "Sampled texts that could not be run", value=self.shadow.left_out
        )
        gauges = {
            "adaexit_shadow_risk": ("Mean of what the certificate limits, of these texts", monitor.risk),
            "adaexit_certificate_e_value": ("Evidence against the certificate, 1 at first", monitor.e_value),
            "adaexit_certificate_alarm": ("1 if the certificate no longer holds", float(monitor.alarm)),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(name, text, value=value)


def _histogram(name: str, text: str, counts: dict[int, int], bounds: Any) -> HistogramMetricFamily:
    """Return how often each value occurred, as Prometheus's cumulative histogram."""
    buckets = [(f"{bound:.1f}", sum(count for value, count in counts.items() if value <= bound)) for bound in bounds]
    buckets.append(("+Inf", sum(counts.values())))
    return HistogramMetricFamily(name, text, buckets, sum(value * count for value, count in counts.items()))
