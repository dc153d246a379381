"""Certify a threshold: a promise about all texts like those of a trace, or a refusal that says what it would take.

The procedure is Learn then Test with fixed-sequence testing (Angelopoulos et al., 2022, arXiv 2110.01052, section 3).

**One guarantee.** The thresholds t_1, t_2, ... stand in an order that is fixed before the data are seen, from strict
to loose. H_j says that the risk at t_j is above the limit. H_1, H_2, ... are tested in turn, each at the full level
delta, up to the first that is not rejected; the threshold before it is certified. Let H_k be the first that is true. A
certified threshold that breaks the promise has an index of k or more, so H_k must have been rejected, which happens
with a probability of at most delta. Nothing is assumed about the shape of the risk.

**The thresholds must not come from the certified rows,** not even from their scores. If they did, t_k would be another
number for every draw, and no single test of level delta would stand between the draw and a broken promise. The default
(`fixed_thresholds`) depends on the exit criterion alone; thresholds from other rows are as good.

**Several guarantees of quality** cost nothing: H_j says that at least one of them is broken at t_j, and is rejected if
the test of each one is. At the first t_k where one is broken, that one's own test must fail.

**Quality and cost** share delta. The mean number of layers falls along the sequence, so its sequence starts at the
loose end: from there on every threshold is within the budget up to the first that fails, each tested at delta / 2.
The sequence of quality is tested at delta / 2, too. With a probability of at least 1 - delta no threshold of either
set breaks its promise, so any threshold in both is certified, and the loosest is taken.
"""

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models.configuration_early_exit import plain
from .bounds import (
    Numbers,
    betting_p_value,
    betting_upper_bound,
    binomial_p_value,
    binomial_upper_bound,
    smallest_number,
)
from .fingerprints import known_hashes, overlap
from .guarantee import Guarantee, row_losses
from .thresholds import fixed_thresholds
from .trace import ExitTrace, at_exits

# A threshold: one number, or one per exit.
Threshold = float | tuple[float, ...]


@dataclass(frozen=True)
class Certificate:
    """A threshold that keeps its guarantees on all texts like the certified ones, with the stated confidence.

    Of a hundred certificates with a confidence of 0.95, made from a hundred draws of rows, about five or fewer are
    wrong. Nothing is promised about texts of another kind.

    Attributes:
        threshold: The certified threshold, one number or one per exit.
        guarantees: What is promised.
        confidence: Probability with which all of it is true, over the draw of the rows.
        risks: For each guarantee its mean over the rows.
        bounds: For each guarantee the upper confidence bound at this threshold, at most the limit. The promise is the
            limit: a bound would have this confidence only if the threshold had been fixed before.
        mean_layers: Mean number of layers run on these rows.
        saving: Share of layer executions saved on these rows.
        n: Number of independent rows, or of groups.
        grouped: Whether `n` counts groups, of which each one has the same weight in all means.
        methods: For each guarantee the test: `"exact binomial"` or `"betting"`.
        repeats: Number of rows whose text also occurs in the data that were named as seen; None if none were named.
        fingerprint: Fingerprint of the rows, from `ExitTrace.fingerprint`; None if unknown.
        criterion: Exit criterion whose unit the threshold has.
        settings: Settings that made the scores, from `ExitTrace.settings`.
    """

    threshold: Threshold
    guarantees: tuple[Guarantee, ...]
    confidence: float
    risks: tuple[float, ...]
    bounds: tuple[float, ...]
    mean_layers: float
    saving: float
    n: int
    grouped: bool
    methods: tuple[str, ...]
    repeats: int | None
    fingerprint: str | None
    criterion: str | None
    settings: Mapping[str, Any]

    def __str__(self) -> str:
        numbers = self.threshold if isinstance(self.threshold, tuple) else (self.threshold,)
        found = "; ".join(
            f"{guarantee}: {risk:.4g} on these rows, at most {bound:.4g} by the {method} bound"
            for guarantee, risk, bound, method in zip(
                self.guarantees, self.risks, self.bounds, self.methods, strict=True
            )
        )
        return (
            f"Certified with a confidence of {self.confidence:g} on {self.n} {'groups' if self.grouped else 'rows'}, "
            f"threshold {', '.join(f'{number:.6g}' for number in numbers)}: {found}. {100 * self.saving:.1f} % of the "
            f"layers are saved ({self.mean_layers:.2f} are run)."
        )

    @property
    def exit_threshold(self) -> float | list[float]:
        """The threshold as a config has it: one number, or a list with one per exit."""
        return list(self.threshold) if isinstance(self.threshold, tuple) else self.threshold

    def as_dict(self) -> dict[str, Any]:
        """Return everything as values that JSON can represent."""
        return _plain_dict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Certificate":
        """Return the certificate of which `as_dict` gave these values, also if they have been through JSON."""
        values = {name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        return cls(**{**values, "guarantees": tuple(map(Guarantee.from_dict, values["guarantees"]))})


@dataclass(frozen=True)
class Refusal:
    """The answer of `certify` where no threshold that saves layers can be certified.

    Attributes:
        reason: Why, in one sentence.
        guarantees: What was asked for.
        confidence: The confidence that was asked for.
        n: Number of independent rows, or of groups.
        grouped: Whether `n` counts groups.
        smallest_n: The smallest number with which it could succeed: if no row had a loss. None above 131,072.
        likely_n: Number with which it would succeed if losses are as frequent as in these rows, at the strictest
            threshold that saves layers here; a rough guide. None if they are too frequent, or above 131,072.
        best_limits: For each guarantee, the smallest limit that these rows could have certified, if it were the only
            reason to refuse. None if no threshold lets a text leave early.
    """

    reason: str
    guarantees: tuple[Guarantee, ...]
    confidence: float
    n: int
    grouped: bool
    smallest_n: int | None
    likely_n: int | None
    best_limits: tuple[float, ...] | None

    def __str__(self) -> str:
        unit = "groups" if self.grouped else "rows"
        needed = f" About {self.likely_n} {unit} are needed with losses as frequent as here." if self.likely_n else ""
        if self.smallest_n is None or self.n < self.smallest_n:  # otherwise the losses decide
            least = "more than 131,072" if self.smallest_n is None else f"{self.smallest_n}"
            likely = f", about {self.likely_n} with losses as frequent as here" if self.likely_n else ""
            needed = f" At least {least} {unit} are needed, if none has a loss{likely}."
        best = ""
        if self.best_limits is not None:
            pairs = zip(self.guarantees, self.best_limits, strict=True)
            limits = ", ".join(f"{guarantee.kind} <= {limit:.4g}" for guarantee, limit in pairs)
            best = f" The best that these {self.n} {unit} can certify is {limits}."
        return f"Refused: {self.reason}{needed}{best}"

    def as_dict(self) -> dict[str, Any]:
        """Return everything as values that JSON can represent."""
        return _plain_dict(self)


def certify(
    trace: ExitTrace,
    guarantees: Guarantee | Sequence[Guarantee],
    confidence: float = 0.95,
    *,
    thresholds: Sequence[float | Sequence[float] | None] | None = None,
    groups: Sequence[Hashable] | None = None,
    seen: Sequence[ExitTrace | Tensor] = (),
    allow_repeats: bool = False,
) -> Certificate | Refusal:
    """Find the threshold that saves most among those that can be certified to keep a guarantee on new texts.

    The rows must be independent draws from the texts that will come, and must have had no part in training, in the
    temperatures or in the choice of thresholds. How it works, and why, is at the head of the module.

    Args:
        trace: Trace of the rows. `"harm"` and `"accuracy_drop"` need labels.
        guarantees: What to promise, one or several at once: of quality, and `"mean_layers"`.
        confidence: Probability, over the draw of the rows, that everything promised is true. Default: 0.95.
        thresholds: Thresholds to try, chosen without these rows: numbers in any order, or lists with one number per
            exit, from strict to loose. Default: `fixed_thresholds` of the exit criterion.
        groups: One group per row, such as its author or its document, if rows of a group resemble each other. Then
            groups are the independent draws: the promise is about the mean over groups of the mean in the group, so
            that a large group counts as much as a small one. Default: all rows are independent.
        seen: Traces, or hashes of rows, `(rows,)`, of everything that had a part in training, temperatures and
            choices. If a text of it occurs in the trace, this is an error. Default: none, nothing is checked.
        allow_repeats: Accept texts that also occur in `seen`, because short texts recur in the traffic by themselves.
            Default: False.

    Returns:
        A `Certificate`, or a `Refusal` if no threshold that saves layers keeps the guarantees, or none that keeps them
        can be certified with so few rows.

    Raises:
        ValueError: If a guarantee does not fit the task, labels or row hashes are missing, a text was seen before, or
            an argument is out of range.
        TypeError: If `guarantees`, `thresholds` or `seen` are of another type.
        ImportError: If the extra `train` (SciPy) is not installed.

    Examples:
        >>> scores = torch.stack([torch.arange(400) / 400, torch.zeros(400)], dim=1)
        >>> first, last = torch.eye(2)[(torch.arange(400) < 100).long()], torch.eye(2)[torch.zeros(400, dtype=int)]
        >>> trace = ExitTrace(
        ...     torch.stack([first, last], dim=1), scores, None, (3, 12), "gt", "confidence", bounds=(0.0, 1.0)
        ... )
        >>> certificate = certify(trace, Guarantee("changed_answers", 0.02))
        >>> print(certificate)  # the first exit answers otherwise where it is least confident, below 0.25
        Certified with a confidence of 0.95 on 400 rows, threshold 0.24: changed_answers <= 0.02: 0.0075 on these \
rows, at most 0.01927 by the exact binomial bound. 56.8 % of the layers are saved (5.18 are run).
        >>> print(certify(trace.take(torch.arange(0, 400, 4)), Guarantee("changed_answers", 0.02)))
        Refused: 100 rows are too few. At least 149 rows are needed, if none has a loss, about 149 with losses as \
frequent as here. The best that these 100 rows can certify is changed_answers <= 0.02951.
    """
    wanted = _checked_guarantees(guarantees)
    if isinstance(confidence, bool) or not isinstance(confidence, Real) or not 0 < confidence < 1:
        meant = f". Did you mean {confidence / 100:g}?" if isinstance(confidence, Real) and confidence > 1 else ""
        raise ValueError(f"confidence: got {confidence!r}; pass a number between 0 and 1, e.g. 0.95{meant}")
    repeats = _repeats(trace, seen, allow_repeats)
    path = _path(trace, thresholds)
    kinds = [guarantee.kind == "mean_layers" for guarantee in wanted]
    delta = (1 - float(confidence)) / len(set(kinds))
    mean_of = _Groups(trace, groups)
    tests = [_Test(trace, guarantee, delta, mean_of) for guarantee in wanted]
    cost = [test for test, is_cost in zip(tests, kinds, strict=True) if is_cost]
    quality = [test for test in tests if test not in cost]

    exits: dict[int, Tensor] = {}

    def at(index: int) -> Tensor:
        if index not in exits:
            threshold = path[index]
            exits[index] = trace.exits_at(list(threshold) if isinstance(threshold, tuple) else threshold)
        return exits[index]

    def rejected(tests: Sequence[_Test], order: Iterable[int]) -> list[int]:
        found = []
        for index in order:
            if not all(test.passes(at(index)) for test in tests):
                break
            found.append(index)
        return found

    last = len(path) - 1
    good = rejected(quality, range(last + 1)) if quality else []
    loosest = good[-1] if good else 0
    cheap = rejected(cost, range(last, loosest - 1, -1)) if cost else []
    chosen = good[-1:] if quality else cheap[-1:]
    layers = torch.tensor(trace.exit_layers, dtype=torch.float64)
    saves = [index for index in chosen if bool((at(index) < len(layers) - 1).any())]
    if saves and (not cost or saves[0] in cheap):
        (index,) = saves
        mean_layers = mean_of(layers[at(index)]).mean().item()
        return Certificate(
            threshold=path[index],
            guarantees=wanted,
            confidence=float(confidence),
            risks=tuple(test.risk(at(index)) for test in tests),
            bounds=tuple(test.bound(at(index)) for test in tests),
            mean_layers=mean_layers,
            saving=1 - mean_layers / trace.depth,
            n=mean_of.count,
            grouped=groups is not None,
            methods=tuple("exact binomial" if test.exact else "betting" for test in tests),
            repeats=repeats,
            fingerprint=trace.fingerprint,
            criterion=trace.criterion,
            settings=dict(trace.settings),
        )
    return _refusal(tests, path, at, good, wanted, float(confidence), groups is not None)


@dataclass(frozen=True)
class Check:
    """Whether rows contradict a guarantee.

    Attributes:
        guarantee: The guarantee.
        n: Number of independent rows, or of groups.
        risk: Its mean over them at the certified threshold.
        p_value: Probability of so large a mean or a larger one if the guarantee holds, or a bound of it.
        contradicted: Whether that is so improbable that the guarantee does not hold for texts like these.
    """

    guarantee: Guarantee
    n: int
    risk: float
    p_value: float
    contradicted: bool


def check_on_rows(
    certificate: Certificate, trace: ExitTrace, groups: Sequence[Hashable] | None = None
) -> tuple[Check, ...]:
    """Test whether rows contradict a certificate at its threshold, whatever their order.

    If all its guarantees hold, any of them is found to be contradicted with a probability of at most 1 minus the
    certificate's confidence. Few rows seldom contradict, and the rows that were certified prove nothing.

    Args:
        certificate: The certificate.
        trace: Trace of the rows, of the same model.
        groups: As for `certify`.

    Returns:
        A check of each guarantee.

    Raises:
        ValueError: If labels are needed and missing, or the trace is of a model with other exits.

    Examples:
        >>> scores = torch.stack([torch.ones(400), torch.zeros(400)], dim=1)
        >>> first, last = torch.eye(2)[(torch.arange(400) < 20).long()], torch.eye(2)[torch.zeros(400, dtype=int)]
        >>> trace = ExitTrace(
        ...     torch.stack([first, last], dim=1), scores, None, (3, 12), "gt", "confidence", bounds=(0.0, 1.0)
        ... )
        >>> certificate = certify(trace, Guarantee("changed_answers", 0.1))
        >>> (check,) = check_on_rows(certificate, trace.take(torch.arange(100)))  # 20 answers differ
        >>> check.n, round(check.risk, 3), round(check.p_value, 4), check.contradicted
        (100, 0.2, 0.002, True)
    """
    delta = (1 - certificate.confidence) / len(certificate.guarantees)
    units = _Groups(trace, groups)
    chosen = trace.exits_at(certificate.exit_threshold)
    checks = []
    for guarantee in certificate.guarantees:
        test = _Test(trace, guarantee, delta, units)
        p_value = test.p_value_of_breach(chosen)
        checks.append(Check(guarantee, units.count, test.risk(chosen), p_value, p_value <= delta))
    return tuple(checks)


class _Groups:
    """Turns a value per row into the values that are independent: themselves, or the means of groups."""

    def __init__(self, trace: ExitTrace, groups: Sequence[Hashable] | None) -> None:
        rows = len(trace.logits)
        if groups is not None and len(groups) != rows:
            raise ValueError(f"groups: got {len(groups)} for {rows} rows; pass one per row")
        numbers: dict[Hashable, int] = {}
        self.of_row = None if groups is None else [numbers.setdefault(group, len(numbers)) for group in groups]
        self.count = rows if groups is None else len(numbers)

    def __call__(self, values: Tensor) -> Numbers:
        """Return the independent values, (rows,) -> (units,)."""
        if self.of_row is None:
            return values.cpu().numpy()
        sums, sizes = np.bincount(self.of_row, values.cpu().numpy()), np.bincount(self.of_row)
        means: Numbers = sums / sizes
        return means


class _Test:
    """The test of one guarantee at a level."""

    def __init__(self, trace: ExitTrace, guarantee: Guarantee, delta: float, units: _Groups) -> None:
        self.losses, self.units, self.delta = row_losses(trace, guarantee), units, delta
        is_cost = guarantee.kind == "mean_layers"
        low, high = (trace.exit_layers[0], trace.depth) if is_cost else guarantee.span
        self.low, self.width = float(low), float(high - low)
        self.limit = (guarantee.limit - self.low) / self.width
        # The test of a share is exact if each independent unit has a loss or none.
        self.exact = not is_cost and self.low == 0 and guarantee.value_range is None and units.of_row is None

    def values(self, chosen: Tensor) -> Numbers:
        """Return the independent values as shares of their range, if row i takes the exit with index chosen[i]."""
        return (self.units(at_exits(self.losses, chosen)) - self.low) / self.width

    def risk(self, chosen: Tensor) -> float:
        return self.low + self.width * float(self.values(chosen).mean())

    def p_value(self, values: Numbers, limit: float) -> float:
        if self.exact:
            return binomial_p_value(round(values.sum()), len(values), limit)
        return betting_p_value(values, limit, self.delta)

    def p_value_of_breach(self, chosen: Tensor) -> float:
        """Return the p-value of the opposite hypothesis, that the mean is at most the limit."""
        values = self.values(chosen)
        if self.exact:
            return binomial_p_value(len(values) - round(values.sum()), len(values), 1 - self.limit)
        return betting_p_value(1 - values, 1 - self.limit, self.delta)

    def passes(self, chosen: Tensor) -> bool:
        return self.p_value(self.values(chosen), self.limit) <= self.delta

    def bound(self, chosen: Tensor) -> float:
        values = self.values(chosen)
        if self.exact:
            return binomial_upper_bound(round(values.sum()), len(values), self.delta)
        return self.low + self.width * betting_upper_bound(values, self.delta)

    def largest_bound(self, several: Iterable[Tensor]) -> float:
        """Return the largest bound of several choices of exits."""
        largest = self.low
        for chosen in several:
            limit = (largest - self.low) / self.width
            if limit <= 0 or self.p_value(self.values(chosen), limit) > self.delta:  # its bound is above
                largest = self.bound(chosen)
        return largest

    @property
    def smallest(self) -> int | None:
        """The smallest number of units with which the test succeeds if none has a loss."""
        return _smallest(self.exact, -min(self.low, 0) / self.width, self.limit, self.delta)

    def likely(self, chosen: Tensor) -> int | None:
        """The number of units with which the test succeeds if their values are as here."""
        values = self.values(chosen)
        mean = float(values.mean())
        if mean >= self.limit:
            return None
        if self.exact:
            return smallest_number(lambda rows: binomial_p_value(mean * rows, rows, self.limit) <= self.delta)
        return smallest_number(lambda rows: self.p_value(np.resize(values, rows), self.limit) <= self.delta, 0.02)


@cache
def _smallest(exact: bool, no_loss: float, limit: float, delta: float) -> int | None:
    """Return the smallest number of units with which a test succeeds if the value of each is `no_loss`."""
    if exact:
        return smallest_number(lambda rows: binomial_p_value(0, rows, limit) <= delta)
    return smallest_number(lambda rows: betting_p_value(np.full(rows, no_loss), limit, delta) <= delta)


def _checked_guarantees(guarantees: Guarantee | Sequence[Guarantee]) -> tuple[Guarantee, ...]:
    wanted = (guarantees,) if isinstance(guarantees, Guarantee) else guarantees
    if isinstance(wanted, str) or not all(isinstance(guarantee, Guarantee) for guarantee in wanted):
        raise TypeError(f"guarantees: got {guarantees!r}; pass Guarantee('changed_answers', 0.02), or a list of them")
    kinds = [guarantee.kind for guarantee in wanted]
    if not kinds or len(set(kinds)) < len(kinds):
        raise ValueError(f"guarantees: got {kinds or 'none'}; pass at least one, and each kind once")
    return tuple(wanted)


def _repeats(trace: ExitTrace, seen: Sequence[ExitTrace | Tensor], allow_repeats: bool) -> int | None:
    """Return the number of rows whose text was seen before; None if nothing is said to have been seen."""
    if isinstance(seen, ExitTrace | Tensor):
        raise TypeError(f"seen: got one {type(seen).__name__}; pass a list, e.g. seen=[training]")
    if not seen:
        return None
    known_hashes(trace, "trace")
    count = int(torch.stack([overlap(trace, each) for each in seen]).any(dim=0).sum())
    if count and not allow_repeats:
        raise ValueError(
            f"seen: {count} of the {len(trace.logits)} rows had a part in training or in a choice, so that they say "
            "too little about new texts; leave them out with trace.take(~overlap(trace, other)), or pass "
            "allow_repeats=True if the same texts recur in the traffic by themselves"
        )
    return count


def _path(trace: ExitTrace, thresholds: Sequence[float | Sequence[float] | None] | None) -> list[Threshold]:
    """Return the thresholds from strict to loose."""
    if len(trace.exit_layers) < 2:
        raise ValueError("trace: has one exit, so that no text can leave early; collect one of a model with exits")
    if thresholds is None:
        return list(fixed_thresholds(trace))
    if isinstance(thresholds, Real | str | Tensor):
        raise TypeError(f"thresholds: got {thresholds!r}; pass a list, e.g. thresholds=[0.9, 0.8]")
    given = [plain(threshold) for threshold in thresholds if threshold is not None]
    lists = [threshold for threshold in given if isinstance(threshold, list | tuple)]
    if not given or (lists and len(lists) < len(given)):
        raise ValueError(
            f"thresholds: got {len(given) - len(lists)} numbers and {len(lists)} lists; pass one or the other, at "
            "least one"
        )
    one_row = trace.take(torch.tensor([0]))
    for threshold in given:
        one_row.exits_at(list(threshold) if isinstance(threshold, tuple) else threshold)  # checks it
    sign = 1 if trace.ready in ("lt", "le") else -1  # times a threshold, it grows from strict to loose
    if not lists:
        return sorted({float(number) for number in given}, key=lambda number: sign * number)
    path = [tuple(float(number) for number in each) for each in lists]
    for strict, loose in zip(path[:-1], path[1:], strict=True):
        if any(sign * after < sign * before for before, after in zip(strict, loose, strict=True)):
            raise ValueError(
                f"thresholds: {list(loose)} follows {list(strict)}, but is stricter at an exit; pass lists from "
                "strict to loose"
            )
    return list(path)


def _refusal(
    tests: Sequence[_Test],
    path: Sequence[Threshold],
    at: Callable[[int], Tensor],
    good: Sequence[int],
    guarantees: tuple[Guarantee, ...],
    confidence: float,
    grouped: bool,
) -> Refusal:
    """Say why nothing is certified.

    Args:
        tests: The tests, one per guarantee.
        path: The thresholds.
        at: Index of a threshold -> exit of each row.
        good: Indices of the thresholds that keep all guarantees of quality.
        guarantees: What was asked for.
        confidence: What was asked for.
        grouped: Whether rows are grouped.
    """
    count, unit, last = tests[0].units.count, "groups" if grouped else "rows", len(path) - 1
    exits = tests[0].losses.shape[1]
    first = next((index for index in range(last + 1) if bool((at(index) < exits - 1).any())), None)
    numbers = [test.smallest for test in tests]
    smallest = None if None in numbers else max(number for number in numbers if number)
    if first is None:
        reason = "no threshold lets a text of these rows leave early."
        return Refusal(reason, guarantees, confidence, count, grouped, smallest, None, None)
    start = max([first, *good[-1:]])  # the loosest threshold for which quality holds, or the first that saves layers
    best, likely = [], []
    for test, guarantee in zip(tests, guarantees, strict=True):
        is_cost = guarantee.kind == "mean_layers"
        # The walk must pass every threshold up to one that saves layers, and for cost every one from the loose end on.
        needed = range(last, (start if len(tests) > 1 else last) - 1, -1) if is_cost else range(first + 1)
        best.append(test.largest_bound(at(index) for index in reversed(needed)))
        likely.append(test.likely(at(start if is_cost and len(tests) > 1 else needed[0] if is_cost else first)))
    expected = None if None in likely else max(number for number in likely if number)
    if smallest is None or count < smallest:
        reason = f"{count} {unit} are too few."
    elif good and good[-1] >= first:
        reason = "where the quality holds, texts run too many layers."
    else:
        broken = next(
            (guarantee, limit) for guarantee, limit in zip(guarantees, best, strict=True) if limit > guarantee.limit
        )
        reason = f"{broken[0]} cannot be told from {broken[1]:.4g} at any threshold that saves layers."
    return Refusal(reason, guarantees, confidence, count, grouped, smallest, expected, tuple(best))


def _plain_dict(result: Certificate | Refusal) -> dict[str, Any]:
    """Return the fields with lists in place of tuples, and guarantees as dicts."""
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in vars(result).items()}
    values["guarantees"] = [guarantee.as_dict() for guarantee in result.guarantees]
    return values
