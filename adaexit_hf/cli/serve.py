"""The command `adaexit serve`."""

import importlib
import os
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..evaluation.certificate_file import SealedCertificate
from ..models.configuration_early_exit import check_whole_number
from ..serving.engine import EarlyExitEngine
from ..serving.shadow import ShadowTraffic
from ..utils.imports import needed
from .options import CHECKPOINT, Fraction, ModelOptions, Positionals, listen, read_config
from .runtime import ExportedModel, RuntimeOptions, certificate_of, load_runtime


@dataclass(kw_only=True)
class ServeOptions(ModelOptions, RuntimeOptions):
    """Flags of `adaexit serve`."""

    positionals: ClassVar[Positionals] = CHECKPOINT
    host: str = field(
        default="127.0.0.1", metadata={"help": "Address to listen on; 0.0.0.0 lets other machines connect."}
    )
    port: int = field(default=8080, metadata={"help": "Port to listen on; 0 takes a free one."})
    api_key: str | None = field(
        default=None,
        metadata={
            "help": "Key that requests must bring (Authorization: Bearer KEY). Default: $ADAEXIT_API_KEY, or none."
        },
    )
    allow_thresholds: bool = field(
        default=False, metadata={"help": "Requests may bring an exit threshold of their own."}
    )
    refuse_long_texts: bool = field(
        default=False,
        metadata={"help": "Refuse texts that are too long in place of truncating them, unless a request says."},
    )
    max_client_batch_size: int = field(default=32, metadata={"help": "Largest number of texts in a request."})
    max_concurrent_texts: int = field(
        default=1024, metadata={"help": "Texts that may be in the server; beyond it requests get status 429."}
    )
    max_body_bytes: int = field(default=2_000_000, metadata={"help": "Largest body of a request."})
    batch_tokens: int | None = field(
        default=None, metadata={"help": "Largest number of tokens in a batch. Default: as for predict."}
    )
    threads: int | None = field(
        default=None,
        metadata={"help": "CPU threads. Default: as many as PyTorch uses; with --runtime onnx the number of cores."},
    )
    shadow: Fraction | None = field(
        default=None,
        metadata={
            "help": "Run this share of the texts at full depth, too, after they were answered, and raise an alarm "
            "when the certificate no longer holds, e.g. 0.01."
        },
    )


def serve(options: ServeOptions, positionals: Any) -> None:
    """Answer texts over HTTP, as text-embeddings-inference does for classifiers and rerankers, until it is stopped.

    Texts at the same depth share a batch, and each leaves at the exit where it is ready. POST /predict, /rerank; GET
    /info, /health, /metrics. Ctrl-C or SIGTERM: what is under way is answered first.
    """
    sizes = ("max_client_batch_size", "max_concurrent_texts", "max_body_bytes", "batch_tokens", "threads")
    for name in sizes:
        if getattr(options, name) is not None:
            check_whole_number(name, getattr(options, name), low=1, advice=f"e.g. --{name} 32")
    uvicorn = needed("uvicorn", "serve")
    importlib.import_module("..serving.server", __package__)  # its packages are missed before the model is loaded
    read_config(positionals.checkpoint, options)
    with listen(options.host, options.port) as listening:  # before the model is loaded
        app = application(positionals.checkpoint, options)
        host, port = listening.getsockname()[:2]
        print(f"adaexit serve: {positionals.checkpoint} on http://{host}:{port}, Ctrl-C stops it", file=sys.stderr)
        settings = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=30)
        with app.state.engine, suppress(KeyboardInterrupt):  # raised again when all is answered
            uvicorn.Server(settings).run(sockets=[listening])
        print("adaexit serve: stopped; what was under way is answered", file=sys.stderr)


def application(checkpoint: str, options: ServeOptions) -> Any:
    """Load a checkpoint, start the engine, and return the ASGI application around it.

    Args:
        checkpoint: Local folder or Hub name.
        options: The flags; host and port are not read.

    Returns:
        The application, with the engine as `app.state.engine`.

    Raises:
        ValueError: As `started` and `watched`.
    """
    from ..serving.server import ServerSettings, create_app

    engine, config, precision, sealed = started(checkpoint, options)
    shadow = None if options.shadow is None else watched(engine, config, sealed, options.shadow)
    settings = ServerSettings(
        model_id=Path(checkpoint).name if Path(checkpoint).is_dir() else checkpoint,
        precision=precision,
        max_body_bytes=options.max_body_bytes,
        max_client_batch_size=options.max_client_batch_size,
        auto_truncate=not options.refuse_long_texts,
        allow_thresholds=options.allow_thresholds,
        api_key=options.api_key or os.environ.get("ADAEXIT_API_KEY"),
        certificate=sealed,
    )
    return create_app(engine, config, settings, shadow)


def started(checkpoint: str, options: ServeOptions) -> tuple[EarlyExitEngine, Any, str, SealedCertificate | None]:
    """Load a checkpoint and start the engine.

    Args:
        checkpoint: Local folder or Hub name.
        options: The flags.

    Returns:
        The engine, the model's config, what the model computes in, and the certificate that holds for what is served.

    Raises:
        ValueError: As `load_runtime`; or a flag does not fit the runtime.
    """
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    model, tokenizer = load_runtime(checkpoint, options, options.exit_threshold)
    folder = Path(checkpoint)
    sealed = certificate_of(folder, model, tokenizer)[0] if folder.is_dir() else None
    early_exit = False if model.config.exit_threshold is None else None
    if not isinstance(model, ExportedModel):
        engine = EarlyExitEngine(
            model,
            tokenizer,
            early_exit=early_exit,
            batch_tokens=options.batch_tokens,
            max_texts=options.max_concurrent_texts,
        )
        return engine, model.config, str(model.dtype).removeprefix("torch."), sealed
    classifier = model.classifier
    longest = classifier.facts["max_tokens"]
    if options.max_seq_length not in (None, longest):
        raise ValueError(
            f"max_seq_length: got {options.max_seq_length}, but the exported model truncates to {longest} tokens; "
            "leave it out"
        )
    if options.batch_tokens is not None:
        raise ValueError(
            f"batch_tokens: got {options.batch_tokens} with --runtime onnx, which runs text by text; leave it out"
        )
    classifier.threads = options.threads or classifier.threads
    threshold = model.config.exit_threshold
    engine = EarlyExitEngine(
        classifier, exit_threshold=threshold, early_exit=early_exit, max_texts=options.max_concurrent_texts
    )
    return engine, model.config, classifier.precision, sealed


def watched(engine: EarlyExitEngine, config: Any, sealed: SealedCertificate | None, share: float) -> ShadowTraffic:
    """Let a share of the traffic watch the certificate; closes the engine if it cannot.

    Args:
        engine: The engine.
        config: The model's config, with the threshold that is served.
        sealed: The certificate.
        share: Share of the texts.

    Raises:
        ValueError: There is no certificate of what is served, or none that can be watched.
    """
    try:
        if sealed is None:
            raise ValueError(
                "shadow: no certificate holds for what is served; run adaexit certify ... --changed_answers 0.02 "
                "first, or leave it out"
            )
        return ShadowTraffic(engine, sealed, share, config.multi_label)
    except ValueError:
        engine.close()
        raise
