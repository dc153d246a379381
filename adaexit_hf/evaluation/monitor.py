"""Watch in production whether a certificate still holds, with a test that may look at every answer."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .bounds import Numbers
from .guarantee import Guarantee

# Shares of the capital that are staked on the next text: none, 1/2, 1/4, ..., 1/4096. Small stakes suit small limits.
STAKES: Numbers = np.array([0.0, *(2.0**-power for power in range(1, 13))])
# Shares of the capital that go to each stake at first, and whenever it is divided anew.
PARTS: Numbers = np.array([0.5, *[0.5 / 12] * 12])


class CertificateMonitor:
    """Raises an alarm when a guarantee no longer holds, and a false one at most with probability `delta`, ever.

    Feed it texts of the traffic, drawn at random, whose answer at full depth was computed as well. A gambler who
    starts with 1 bets on each text that its loss x, as a share of its range, is above the limit m:

        K_t = K_{t-1} (1 + s (x_t - m) / m)

    with a stake s of at most 1/2. As long as the expected loss is at most m, whatever came before, K is a nonnegative
    supermartingale, so that it ever reaches `1 / delta` with a probability of at most `delta` (Ville, 1939); it may be
    looked at after every text (Waudby-Smith and Ramdas, arXiv 2010.09686; Shafer, 2021). The capital is divided among
    thirteen stakes, since the best one depends on the loss that will come; half of it is not staked. Before text t a
    share of 1 / (t + 1) of all capital is divided anew (fixed share: Herbster and Warmuth, 1998), so that after a long
    good time enough is left to bet with. Neither changes the total, and so not the proof.

    An object is not safe for several threads at once.

    Args:
        guarantee: What is watched: a guarantee of a certificate, of any kind but `"mean_layers"`.
        delta: Probability of a false alarm, over all time. Default: 0.05.

    Attributes:
        n: Number of texts seen.
        e_value: The capital, K. It is evidence against the guarantee: 1 at first, expected to stay at most 1 while the
            guarantee holds.
        alarm: Whether the capital has ever reached `1 / delta`.

    Raises:
        ValueError: If the guarantee is one of layers, or `delta` is not between 0 and 1.
        TypeError: If `guarantee` is not a `Guarantee`.

    Examples:
        >>> monitor = CertificateMonitor(Guarantee("changed_answers", 0.1))
        >>> [monitor.update("no", "no") for _ in range(100)][-1], [monitor.update("no", "yes") for _ in range(9)][-1]
        (False, True)
        >>> monitor.n, round(monitor.risk, 3), round(monitor.e_value)
        (109, 0.083, 1827)
    """

    def __init__(self, guarantee: Guarantee, delta: float = 0.05) -> None:
        if not isinstance(guarantee, Guarantee):
            raise TypeError(
                f"guarantee: got {type(guarantee).__name__}; pass one of certificate.guarantees, or "
                "Guarantee('changed_answers', 0.02)"
            )
        if guarantee.kind == "mean_layers":
            raise ValueError(
                f"guarantee: got {guarantee}; the layers that are run need no answers of full depth, pass a guarantee "
                "of another kind"
            )
        if not 0 < delta < 1:
            raise ValueError(f"delta: got {delta}; pass a number between 0 and 1, e.g. 0.05")
        self.guarantee, self.delta = guarantee, float(delta)
        self.n, self.alarm = 0, False
        self._sum, self._log_capital, self._parts = 0.0, 0.0, PARTS.copy()

    @property
    def e_value(self) -> float:
        """The capital."""
        return math.exp(min(self._log_capital, 700.0))

    @property
    def risk(self) -> float:
        """Mean loss of the texts seen; NaN before the first."""
        return self._sum / self.n if self.n else math.nan

    def update(self, with_exits: Any, full_depth: Any, label: Any = None) -> bool:
        """Take the two answers to one text.

        Args:
            with_exits: The answer that was served: a class or its name, for regression a number, with several labels
                at once the list of the given ones in any order.
            full_depth: The answer at full depth, in the same form.
            label: The true answer, for `"harm"` and `"accuracy_drop"`.

        Returns:
            Whether there is an alarm, now or since an earlier text.

        Raises:
            ValueError: If the label is needed and missing, or given and not needed, or if a list names a label twice.
        """
        return self.update_loss(self._loss(with_exits, full_depth, label))

    def update_loss(self, loss: float) -> bool:
        """Take the loss of one text, as `row_losses` computes it.

        Args:
            loss: What the guarantee limits the mean of.

        Returns:
            Whether there is an alarm.
        """
        low, high = self.guarantee.span
        self._parts, log_growth = grown(
            self._parts, (loss - low) / (high - low), (self.guarantee.limit - low) / (high - low), self.n
        )
        self._log_capital += float(log_growth)
        self._sum += loss
        self.n += 1
        self.alarm = self.alarm or self._log_capital >= -math.log(self.delta)
        return self.alarm

    def update_many(self, with_exits: Sequence[Any], full_depth: Sequence[Any], labels: Any = None) -> bool:
        """Take the answers to several texts, one after the other, as `update` does.

        Args:
            with_exits: The answers that were served.
            full_depth: The answers at full depth, as many.
            labels: The true answers, as many, if the guarantee needs them.

        Returns:
            Whether there is an alarm.

        Raises:
            ValueError: As `update`, or if the numbers of answers differ.
        """
        given = [None] * len(with_exits) if labels is None else labels
        if not len(with_exits) == len(full_depth) == len(given):
            raise ValueError(
                f"full_depth, labels: got {len(full_depth)} and {len(given)} for {len(with_exits)} answers; pass one "
                "per answer"
            )
        for answers in zip(with_exits, full_depth, given, strict=True):
            self.update(*answers)
        return self.alarm

    def to_dict(self) -> dict[str, Any]:
        """Return the state as values that JSON can represent, from which `from_dict` goes on after a restart."""
        return {
            "guarantee": self.guarantee.as_dict(),
            "delta": self.delta,
            "n": self.n,
            "alarm": self.alarm,
            "sum": self._sum,
            "log_capital": self._log_capital,
            "parts": self._parts.tolist(),
        }

    @classmethod
    def from_dict(cls, state: Mapping[str, Any]) -> "CertificateMonitor":
        """Return the monitor of which `to_dict` gave this state."""
        monitor = cls(Guarantee.from_dict(state["guarantee"]), state["delta"])
        monitor.n, monitor.alarm = state["n"], state["alarm"]
        monitor._sum, monitor._log_capital = state["sum"], state["log_capital"]
        monitor._parts = np.array(state["parts"])
        return monitor

    def _loss(self, with_exits: Any, full_depth: Any, label: Any) -> float:
        kind = self.guarantee.kind
        if (label is None) == (kind in ("harm", "accuracy_drop")):
            raise ValueError(f"label: got {label!r}; {kind} needs {'one' if label is None else 'none'}")
        if self.guarantee.value_range is not None:
            low, high = self.guarantee.value_range
            difference = abs(min(max(with_exits, low), high) - min(max(full_depth, low), high))
            return high - low if math.isnan(difference) else float(difference)
        if self.guarantee.tolerance is not None:
            return float(not abs(with_exits - full_depth) <= self.guarantee.tolerance)  # NaN is another answer
        served, full = _as_set(with_exits), _as_set(full_depth)
        if label is None:
            return float(served != full)
        true = _as_set(label)
        drop = float(full == true) - float(served == true)
        return max(drop, 0.0) if kind == "harm" else drop


def grown(parts: Numbers, loss: Any, limit: float, before: int) -> tuple[Numbers, Any]:
    """Let the capital grow by the bets on one text, for one monitor or for many at once.

    Args:
        parts: Shares of the capital at each stake, which add up to 1, `(..., stakes)`.
        loss: Loss of the text as a share of its range, one number or `(...,)`.
        limit: The limit as a share of the range.
        before: Number of texts before this one.

    Returns:
        The new shares, and the logarithm of the growth, `(...,)`.

    Examples:
        >>> parts, log_growth = grown(PARTS, 1.0, 0.1, before=0)
        >>> round(float(np.exp(log_growth)), 3), round(float(parts.sum()), 6)  # 1 + (mean stake) (1 - 0.1) / 0.1
        (1.375, 1.0)
    """
    anew = 1 / (before + 2)
    after = ((1 - anew) * parts + anew * PARTS) * (1 + STAKES * (np.asarray(loss)[..., None] - limit) / limit)
    total = after.sum(axis=-1)
    return after / total[..., None], np.log(total)


def _as_set(answer: Any) -> Any:
    """Return a list of labels as a set; any other answer as it is."""
    if not isinstance(answer, list | tuple | set | frozenset):
        return answer
    labels = frozenset(answer)
    if len(labels) < len(answer):
        raise ValueError(
            f"answer: got {answer!r}; pass the labels that are given, each once, not 0 or 1 for each label"
        )
    return labels
