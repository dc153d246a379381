"""`ShadowTraffic`: a sample of the served texts also runs at full depth, to watch a certificate."""

import asyncio
import logging
import random
from collections.abc import Sequence
from typing import Any

import torch

from ..evaluation.certificate_file import SealedCertificate
from ..evaluation.guarantee import Guarantee
from ..evaluation.monitor import CertificateMonitor
from ..evaluation.trace import predictions
from .backends import TruncationSide
from .engine import Answer, EarlyExitEngine, EngineClosedError, InferenceError, QueueFullError

logger = logging.getLogger(__name__)
# What can be watched without labels.
WATCHED = ("changed_answers", "mean_difference")


class ShadowTraffic:
    """Runs a random share of the texts at full depth as well, and feeds the answers to a `CertificateMonitor`.

    The client has its answer before. Texts of requests with a threshold of their own, and those that a deadline cut
    short, are not sampled: nothing was promised about them. While the engine is full, texts are left out.

    Args:
        engine: the engine that serves, at the certified threshold.
        sealed: the certificate.
        share: share of the texts to run at full depth, above 0 and at most 1.
        multi_label: whether a text may have several labels at once. Default: False.
        draw: gives the next random number from 0 to 1. Default: that of `random`.

    Attributes:
        monitor: the monitor of the certificate's guarantee.
        left_out: number of sampled texts that could not be run.

    Raises:
        ValueError: the certificate is void, or promises only what labels would tell; or the share is out of range.
    """

    def __init__(
        self,
        engine: EarlyExitEngine,
        sealed: SealedCertificate,
        share: float,
        multi_label: bool = False,
        draw: Any = random.random,
    ) -> None:
        if not 0 < share <= 1:
            raise ValueError(f"shadow: got {share:g}; pass the share of the texts to watch, e.g. 0.01")
        if sealed.void:
            raise ValueError(f"shadow: the certificate is void: {'; '.join(sealed.void)}; certify again")
        self.engine, self.share, self.multi_label, self.draw = engine, share, multi_label, draw
        self.monitor = CertificateMonitor(_watched(sealed), delta=1 - sealed.certificate.confidence)
        self.left_out = 0
        self._tasks: set[asyncio.Task[None]] = set()

    def offer(
        self,
        texts: Sequence[Any],
        answers: Sequence[Answer],
        truncate: bool,
        truncation_side: TruncationSide | None = None,
    ) -> None:
        """Take texts that were answered at the certified threshold; called in the event loop.

        Args:
            texts: the texts.
            answers: their answers, as many.
            truncate: as in `submit` of the engine.
            truncation_side: as in `submit` of the engine.
        """
        for text, answer in zip(texts, answers, strict=True):
            if not answer.deadline_passed and self.draw() < self.share:
                task = asyncio.ensure_future(self._compare(text, answer, truncate, truncation_side))
                self._tasks.add(task)  # the event loop itself keeps no task alive
                task.add_done_callback(self._tasks.discard)

    async def _compare(
        self, text: Any, answer: Answer, truncate: bool, truncation_side: TruncationSide | None
    ) -> None:
        try:
            full_depth = await self.engine.classify(
                text, early_exit=False, truncate=truncate, truncation_side=truncation_side
            )
        except (QueueFullError, EngineClosedError, InferenceError):
            self.left_out += 1
            return
        before = self.monitor.alarm
        if self.monitor.update(self._given(answer), self._given(full_depth)) and not before:
            logger.error(
                "the certificate no longer holds: %s was contradicted by %d texts of the traffic, where it is %.4g; "
                "certify again on texts of today",
                self.monitor.guarantee,
                self.monitor.n,
                self.monitor.risk,
            )

    def _given(self, answer: Answer) -> Any:
        """Return an answer in the form that the monitor takes; one that is not finite is like no other."""
        if not bool(torch.isfinite(answer.logits).all()):
            return float("nan")
        found = predictions(answer.logits, self.multi_label)
        return found.nonzero().flatten().tolist() if self.multi_label else found.item()


def _watched(sealed: SealedCertificate) -> Guarantee:
    """Return the guarantee that can be watched without labels.

    Raises:
        ValueError: there is none.
    """
    found = [guarantee for guarantee in sealed.certificate.guarantees if guarantee.kind in WATCHED]
    if not found:
        kinds = ", ".join(guarantee.kind for guarantee in sealed.certificate.guarantees)
        raise ValueError(
            f"shadow: the certificate promises {kinds}, which full depth alone does not tell; certify "
            "--changed_answers"
        )
    return found[0]
