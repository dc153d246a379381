"""A backend whose steps wait until they are let go, and a server on loopback."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import uvicorn

from adaexit_hf.serving import EarlyExitEngine
from adaexit_hf.serving.backends import Outcome, TokenizedText
from adaexit_hf.serving.server import ServerSettings, create_app

SOON = 20  # seconds within which anything must have happened


class Gated:
    """A backend of three layers, each with an exit; texts are dicts that say at which layer they leave or break."""

    layers = exit_layers = (1, 2, 3)
    batch_tokens, workers, max_tokens = 100, 1, 50

    def __init__(self) -> None:
        self.go, self.began = threading.Semaphore(0), threading.Semaphore(0)
        self.steps: list[tuple[int, list[str]]] = []

    def read(self, item: Any, truncation_side: Any = None) -> TokenizedText:
        if item is None:
            raise ValueError("text is None")
        return TokenizedText(item, item.get("tokens", 10), (), item.get("tokens", 10) > 50)

    def thresholds_in_use(self, exit_threshold: Any, early_exit: Any) -> Any:
        return [0.5, 0.5, 0.5]

    def embed(self, rows: Any) -> Any:
        return list(rows)

    def joined(self, pieces: Any) -> Any:
        return [batch[row] for batch, rows in pieces for row in rows]

    def run(self, stage: int, batch: Any, thresholds: Any) -> Outcome:
        self.steps.append((stage + 1, [text["name"] for text in batch]))
        self.began.release()
        assert self.go.acquire(timeout=SOON)
        for text in batch:
            if text.get("breaks") == stage + 1:
                raise ValueError("broken")
        leaving = [thresholds is None or text["leaves"] == stage + 1 for text in batch]
        return Outcome(batch, leaving, torch.full((len(batch), 2), stage + 1.0), [0.0] * len(batch))

    def let_go(self) -> None:
        self.go.release(1000)


def text(name: str, leaves: int = 3, **more: Any) -> dict[str, Any]:
    return {"name": name, "leaves": leaves} | more


@contextmanager
def served(engine: EarlyExitEngine, config: Any, **settings: Any) -> Iterator[int]:
    """A server in a thread; the port on which it listens."""
    app = create_app(engine, config, ServerSettings(**{"model_id": "tiny", "precision": "float32"} | settings))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        server = uvicorn.Server(uvicorn.Config(app, log_level="error", access_log=False, ws="none"))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield listening.getsockname()[1]
        finally:
            server.should_exit = True
            thread.join(SOON)
