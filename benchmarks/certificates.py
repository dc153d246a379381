r"""Check certificates by simulation and on real traces, and write the tables of docs/certificates.md.

    OMP_NUM_THREADS=1 python benchmarks/certificates.py --traces traces/*/test.safetensors

Rows are drawn from populations of 20,000 rows whose risk at every threshold is known, so that it is known of every
certificate whether it keeps its promise. One line of certificates.jsonl is one cell of a table; cells that are there
already are not run again. Without `--traces` only what needs no traces is run; `--table` runs nothing and writes the
tables.

The populations, with exits after layers 3 and 12 and a limit of 5 %:

- easy: the first exit errs on one text of 200, whatever its score.
- hard: it errs the more, the lower its score is. The limit is crossed where 79 % of the texts have left.
- edge: the risk is just above the limit from the strictest threshold on, so that every certificate is wrong.
- ties: there are five different scores only. The limit is just crossed at the third.
- waves: a second exit, after layer 6, errs on texts that leave before it at the next threshold, so that the risk is
  just above the limit at every threshold but the strictest, each time by other texts.
"""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adaexit_hf import Certificate, ExitTrace, Guarantee, certify
from adaexit_hf.evaluation.bounds import betting_p_value, binomial_p_value, smallest_number
from adaexit_hf.evaluation.guarantee import row_losses
from adaexit_hf.evaluation.monitor import PARTS, grown
from adaexit_hf.evaluation.thresholds import fixed_thresholds
from adaexit_hf.evaluation.trace import at_exits

RESULTS = Path(__file__).with_name("certificates.jsonl")
PAGE = Path(__file__).parents[1] / "docs" / "certificates.md"
MARK = "<!-- written by benchmarks/certificates.py -->"
SIZE, LIMIT, DELTA, DEPTH = 20_000, 0.05, 0.05, 12
TOO_MANY = round(SIZE * LIMIT) + 1  # losses in the population: the fewest that break the promise
GRID = [0.99999, *np.linspace(0.9, 0, 10).round(1).tolist()]
SIX = [0.99999, 0.8, 0.6, 0.4, 0.2, 0.0]
POPULATIONS = ("easy", "hard", "edge", "ties", "waves")
KINDS = ("changed_answers", "harm", "accuracy_drop", "mean_difference", "mean_layers", "changed_answers + mean_layers")
SIZES = (100, 300, 1000, 5000)
SPLITS = 200
Row = dict[str, Any]


def evenly(first: int, last: int, count: int) -> np.ndarray:
    """Indices of some rows from the first to before the last, evenly spaced.

    >>> evenly(10, 20, 4).tolist()
    [10, 12, 15, 17]
    """
    return np.linspace(first, last, count, endpoint=False).astype(int)


def population(name: str, kind: str) -> ExitTrace:
    """A population, from the most to the least confident row, with losses of a kind as described above."""
    place = (np.arange(SIZE) + 0.5) / SIZE
    scores, losses = np.stack([1 - place, np.zeros(SIZE)], axis=1), np.zeros(SIZE)
    layers: tuple[int, ...] = (3, DEPTH)
    if name == "easy":
        losses[::200] = 1
    elif name == "hard":
        losses = np.diff(np.floor(np.append(0, (0.3 * place**2).cumsum())))
    elif name == "ties":
        ends = (np.array([0, 0.4, 0.6, 0.8, 0.95, 1]) * SIZE).astype(int)
        counts = [400, 200, TOO_MANY - 600, 150, 50]
        for first, last, score, count in zip(ends[:-1], ends[1:], [0.999, 0.9, 0.7, 0.5, 0.3], counts, strict=True):
            scores[first:last, 0] = score
            losses[evenly(first, last, count)] = 1
    else:
        scores[: SIZE // 10, 0] = 0.999999
        losses[evenly(0, SIZE // 10, TOO_MANY)] = name == "edge"
    if kind == "accuracy_drop" and name != "waves":  # gains, each made up for by one more harm before it
        free = np.flatnonzero(losses == 0)[::20]
        losses[free] = np.where(np.arange(len(free)) % 2, -1, 1)
    elif kind == "mean_difference":  # half of each loss is moved to the next row
        losses = (losses + np.roll(losses, 1)) / 2
    at_exit = np.stack([losses, np.zeros(SIZE)], axis=1)
    if name == "waves":
        scores, at_exit, layers = np.insert(scores, 1, 0, axis=1), np.insert(at_exit, 1, 0, axis=1), (3, 6, DEPTH)
        for place, threshold in enumerate(GRID[1:]):
            rows = np.arange(place, SIZE - SIZE // 10, 10)[:TOO_MANY] + SIZE // 10
            scores[rows], at_exit[rows, 1] = (threshold - 0.05, threshold + 0.05, 0), 1
    if kind == "mean_difference":
        logits = torch.tensor(at_exit)[..., None]
    else:  # the label is 0; full depth is wrong where an exit gains
        full = (at_exit == -1).any(axis=1, keepdims=True).astype(int)
        logits = torch.eye(2)[torch.tensor(np.where(at_exit == 0, full, (at_exit == 1).astype(int)))]
    labels = None if kind == "mean_difference" else torch.zeros(SIZE, dtype=torch.long)
    return ExitTrace(logits, torch.tensor(scores), labels, layers, "gt", "confidence", bounds=(0.0, 1.0))


def wanted(trace: ExitTrace, kind: str) -> list[Guarantee]:
    """The guarantees to certify. A budget of layers is one that the threshold 0.5 just breaks."""
    guarantees = []
    for name in kind.split(" + "):
        limit, value_range = LIMIT, (0.0, 1.0) if name == "mean_difference" else None
        if name == "mean_layers":
            limit = trace.at(0.5)[1].double().mean().item() - 1 / SIZE
        guarantees.append(Guarantee(name, limit, value_range=value_range))
    return guarantees


def true_risk(trace: ExitTrace, guarantee: Guarantee, threshold: Any) -> float:
    """The risk in the population at a threshold."""
    return at_exits(row_losses(trace, guarantee), trace.exits_at(threshold)).mean().item()


def saving(trace: ExitTrace, threshold: Any) -> float:
    """The share of layers saved in the population."""
    return 1 - trace.at(threshold)[1].double().mean().item() / trace.depth


class Known:
    """What is known of a population at every threshold of a grid, to be looked up for many draws.

    Args:
        trace: The population.
        guarantees: The guarantees.
        grid: Thresholds from strict to loose.
    """

    def __init__(self, trace: ExitTrace, guarantees: Sequence[Guarantee], grid: Sequence[float]) -> None:
        self.trace, self.guarantees, self.grid = trace, guarantees, grid
        exits = [trace.exits_at(threshold) for threshold in grid]
        self.early = np.stack([(chosen < len(trace.exit_layers) - 1).numpy() for chosen in exits])
        self.losses = [
            np.stack([at_exits(row_losses(trace, guarantee), chosen).numpy() for chosen in exits])
            for guarantee in guarantees
        ]
        broken = [each.mean(axis=1) > guarantee.limit for each, guarantee in zip(self.losses, guarantees, strict=True)]
        self.wrong = np.any(broken, axis=0)
        self.saving = [saving(trace, threshold) for threshold in grid]
        self.is_cost = [guarantee.kind == "mean_layers" for guarantee in guarantees]

    def p_value(self, which: int, index: int, rows: np.ndarray, delta: float) -> float:
        """The p-value of one guarantee at one threshold, on the drawn rows."""
        guarantee, values = self.guarantees[which], self.losses[which][index, rows]
        if guarantee.kind in ("changed_answers", "harm"):
            return binomial_p_value(round(values.sum()), len(values), guarantee.limit)
        layers = self.trace.exit_layers
        low, high = (layers[0], layers[-1]) if self.is_cost[which] else guarantee.span
        return betting_p_value((values - low) / (high - low), (guarantee.limit - low) / (high - low), delta)

    def certified(self, rows: np.ndarray) -> int | None:
        """What `certify` does, as plainly as possible: the index of the threshold, None for a refusal."""
        delta = DELTA / len(set(self.is_cost))

        def walked(order: Sequence[int], cost: bool) -> list[int]:
            which = [place for place, is_cost in enumerate(self.is_cost) if is_cost == cost]
            passed = []
            for index in order:
                if not which or any(self.p_value(each, index, rows, delta) > delta for each in which):
                    break
                passed.append(index)
            return passed

        last = len(self.grid) - 1
        good = walked(range(last + 1), cost=False)
        if all(self.is_cost):
            chosen = walked(range(last, -1, -1), cost=True)
        elif any(self.is_cost) and good and good[-1] not in walked(range(last, good[-1] - 1, -1), cost=True):
            chosen = []
        else:
            chosen = good
        return chosen[-1] if chosen and self.early[chosen[-1], rows].any() else None

    def oracle(self) -> float:
        """The saving of the threshold that would be chosen if all risks were known."""
        kept = [
            [bool(each[index].mean() <= guarantee.limit) for index in range(len(self.grid))]
            for each, guarantee in zip(self.losses, self.guarantees, strict=True)
        ]
        if all(self.is_cost):
            return max((value for index, value in enumerate(self.saving) if kept[0][index]), key=lambda value: -value)
        quality = [each for each, is_cost in zip(kept, self.is_cost, strict=True) if not is_cost]
        good = next(
            (index for index in range(len(self.grid)) if not all(each[index] for each in quality)), len(self.grid)
        )
        return self.saving[good - 1] if good and all(each[good - 1] for each in kept) else 0.0


# A choice: the index of a threshold, None for none, on drawn rows of a population.
Choose = Callable[[Known, np.ndarray], int | None]
COMPARED = 20  # draws on which `certify` itself must choose the same


def outcome(known: Known, rows: int, draws: int, choose: Choose) -> Row:
    """Choose a threshold on each of many draws, and count how many are wrong about the population.

    Raises:
        AssertionError: If `certify` chooses another threshold than the plain loop that is used here for its speed.
    """
    generator = np.random.default_rng(rows)
    found = []
    for draw in range(draws):
        drawn = generator.integers(len(known.trace.logits), size=rows)
        index = choose(known, drawn)
        if choose is Known.certified and draw < COMPARED:
            result = certify(known.trace.take(torch.tensor(drawn)), known.guarantees, 1 - DELTA, thresholds=known.grid)
            theirs = result.threshold if isinstance(result, Certificate) else None
            assert theirs == (None if index is None else known.grid[index]), (known.guarantees, rows, draw)
        found.append(index)
    chosen = [index for index in found if index is not None]
    return {
        "certified": len(chosen) / draws,
        "violated": sum(bool(known.wrong[index]) for index in chosen) / draws,
        "saving": sum(known.saving[index] for index in chosen) / draws,
    }


def best_of_grid(known: Known, rows: np.ndarray) -> int | None:
    """The loosest threshold whose observed risk is within the limit."""
    return max(np.flatnonzero(known.losses[0][:, rows].mean(axis=1) <= LIMIT), default=None)


def until_first_loss(known: Known, rows: np.ndarray) -> int | None:
    """The last threshold before the first whose observed risk is above the limit, as `choose_threshold` does."""
    broken = np.flatnonzero(known.losses[0][:, rows].mean(axis=1) > LIMIT)
    last = broken[0] - 1 if len(broken) else len(known.grid) - 1
    return int(last) if last >= 0 else None


def any_test(known: Known, rows: np.ndarray) -> int | None:
    """The loosest threshold of which the test says yes, whatever it says of others."""
    return max((i for i in range(len(known.grid)) if known.p_value(0, i, rows, DELTA) <= DELTA), default=None)


def first_failed(known: Known, rows: np.ndarray) -> int | None:
    """The first threshold of which the test does not say yes, in a grid of six: one too far."""
    places = [known.grid.index(threshold) for threshold in SIX]
    return next((i for i in places if known.p_value(0, i, rows, DELTA) > DELTA), places[-1])


WRONG_WAYS: dict[str, Choose] = {
    "best of the grid by the observed risk": best_of_grid,
    "observed risk, up to the first loss": until_first_loss,
    "loosest threshold whose test passes": any_test,
    "first threshold of six whose test fails": first_failed,
}


def alarms(kind: str, rates: Sequence[tuple[int, float]], runs: int, limit: float = 0.02) -> Row:
    """Feed many monitors texts with a share of losses; how many raise an alarm, and after how many texts.

    Args:
        kind: `"changed_answers"`, or `"accuracy_drop"` with gains on 2 % of the texts.
        rates: Number of texts and share (or drop), one after the other. Delays count from the start of the last.
        runs: Number of monitors.
        limit: The limit that is watched.
    """
    generator = np.random.default_rng(0)
    low, gains = (-1.0, 0.02) if kind == "accuracy_drop" else (0.0, 0.0)
    share = (limit - low) / (1 - low)
    parts, capital, first = np.tile(PARTS, (runs, 1)), np.zeros(runs), np.full(runs, -1)
    seen = 0
    for texts, rate in rates:
        start = seen
        for _ in range(texts):
            place = generator.random(runs)
            losses = (place < rate + gains).astype(float) - (place > 1 - gains)
            parts, growth = grown(parts, (losses - low) / (1 - low), share, seen)
            capital, seen = capital + growth, seen + 1
            first[(first < 0) & (capital >= -np.log(DELTA))] = seen
            if (first >= 0).all():
                break
    delays = first[first > start] - start
    return {
        "alarms": float((first >= 0).mean()), "early": float(((first >= 0) & (first <= start)).mean()),
        "median": float(np.median(delays)) if len(delays) else None,
        "nine_tenths": float(np.quantile(delays, 0.9)) if len(delays) else None,
    }  # fmt: skip


STREAMS: dict[str, tuple[str, list[tuple[int, float]]]] = {
    "changed answers at the limit, for 20,000 texts": ("changed_answers", [(20_000, 0.02)]),
    "changed answers at half the limit, for 20,000 texts": ("changed_answers", [(20_000, 0.01)]),
    "accuracy drop at the limit, for 20,000 texts": ("accuracy_drop", [(20_000, 0.02)]),
    "changed answers twice the limit from the start": ("changed_answers", [(40_000, 0.04)]),
    "changed answers three times the limit from the start": ("changed_answers", [(40_000, 0.06)]),
    "changed answers twice the limit after 10,000 texts at half of it": (
        "changed_answers", [(10_000, 0.01), (40_000, 0.04)],
    ),
    "changed answers three times the limit after 10,000 texts at half of it": (
        "changed_answers", [(10_000, 0.01), (40_000, 0.06)],
    ),
    "accuracy drop twice the limit from the start": ("accuracy_drop", [(40_000, 0.04)]),
}  # fmt: skip


def real(trace: ExitTrace, guarantee: Guarantee, splits: int) -> Row:
    """Certify on one half of a trace and measure on the other; and certify on draws from the whole trace."""
    refused = above = 0
    savings = []
    for seed in range(splits):
        order = torch.randperm(len(trace.logits), generator=torch.Generator().manual_seed(seed))
        here, other = order[::2], trace.take(order[1::2])
        result = certify(trace.take(here), guarantee, 1 - DELTA)
        if not isinstance(result, Certificate):
            refused += 1
            continue
        savings.append(saving(other, result.threshold))
        above += true_risk(other, guarantee, result.threshold) > guarantee.limit
    rows = len(trace.logits)
    known = outcome(Known(trace, [guarantee], fixed_thresholds(trace)), rows // 2, 5 * splits, Known.certified)
    return {
        "rows": rows // 2, "refused": refused / splits, "above": above / splits,
        "saving": float(np.mean(savings)) if savings else None,
        "drawn_violated": known["violated"], "drawn_certified": known["certified"],
    }  # fmt: skip


def guarantees_of(trace: ExitTrace) -> list[Guarantee]:
    """What is certified on a real trace; for numbers from 0 or 1 to 5."""
    if trace.logits.shape[-1] == 1:
        return [
            Guarantee("changed_answers", 0.1, tolerance=0.5),
            *(Guarantee("mean_difference", limit, value_range=(0, 5)) for limit in (0.2, 0.4)),
        ]
    chosen = [("changed_answers", 0.02), ("changed_answers", 0.05), ("harm", 0.02), ("accuracy_drop", 0.02)]
    return [Guarantee(kind, limit) for kind, limit in chosen]


def jobs(draws: int, traces: Sequence[Path]) -> Iterator[tuple[Row, Callable[[], Row]]]:
    """All cells: what names each, and what computes it."""
    for rows in SIZES:
        for kind in KINDS:
            for name in POPULATIONS:

                def validity(kind: str = kind, name: str = name, rows: int = rows) -> Row:
                    trace = population(name, kind)
                    known = Known(trace, wanted(trace, kind), GRID)
                    return outcome(known, rows, draws, Known.certified) | {"oracle": known.oracle()}

                yield {"part": "validity", "kind": kind, "population": name, "n": rows, "draws": draws}, validity
    for way, choose in WRONG_WAYS.items():
        for name in ("hard", "edge", "waves"):
            for rows in (300, 1000):

                def wrong(choose: Choose = choose, name: str = name, rows: int = rows) -> Row:
                    trace = population(name, "changed_answers")
                    return outcome(Known(trace, [Guarantee("changed_answers", LIMIT)], GRID), rows, draws, choose)

                yield {"part": "wrong", "way": way, "population": name, "n": rows, "draws": draws}, wrong
    for stream, (kind, rates) in STREAMS.items():
        yield {"part": "monitor", "stream": stream, "draws": draws}, lambda k=kind, r=rates: alarms(k, r, draws)
    for path in traces:
        trace = ExitTrace.load(path)
        for guarantee in guarantees_of(trace):
            key = {
                "part": "real",
                "trace": f"{path.parent.name}/{path.stem}",
                "guarantee": str(guarantee),
                "draws": SPLITS,
            }
            yield key, lambda trace=trace, guarantee=guarantee: real(trace, guarantee, SPLITS)


def lines_of(path: Path) -> list[Row]:
    """The recorded cells."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def percent(value: float | None, digits: int = 1) -> str:
    """A share in percent; a dash for none."""
    return "-" if value is None else f"{100 * value:.{digits}f}"


def table(head: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in [head, ["---"] * len(head), *body]]
    return "\n".join(lines)


def tables(lines: Sequence[Row]) -> list[str]:
    """The five tables of the page, from the recorded cells."""
    parts = {
        part: [line for line in lines if line["part"] == part] for part in ("validity", "wrong", "monitor", "real")
    }
    validity = {(line["kind"], line["population"], line["n"]): line for line in parts["validity"]}

    def cell(line: Row | None) -> str:
        return (
            ""
            if line is None
            else f"{percent(line['violated'])} ({percent(line['certified'], 0)}, {percent(line['saving'])})"
        )

    body = []
    for kind in KINDS:
        for name in POPULATIONS:
            cells = [validity.get((kind, name, rows)) for rows in SIZES]
            if any(cells):
                oracle = next(line["oracle"] for line in cells if line)
                body.append([kind.replace("_", " "), name, *map(cell, cells), percent(oracle)])
    first = table(["guarantee", "population", *(f"n = {rows:,}" for rows in SIZES), "oracle saves"], body)
    wrong = {(line["way"], line["population"], line["n"]): line for line in parts["wrong"]}
    places = [(name, rows) for name in ("hard", "edge", "waves") for rows in (300, 1000)]
    ways = [
        [way, *("" if (way, *place) not in wrong else percent(wrong[(way, *place)]["violated"]) for place in places)]
        for way in WRONG_WAYS
    ]
    ours = [validity.get(("changed_answers", *place)) for place in places]
    ways.append(["**`certify`**", *("" if line is None else percent(line["violated"]) for line in ours)])
    second = table(["chosen", *(f"{name}, n = {rows:,}" for name, rows in places)], ways)
    third = table(
        ["traffic", "alarms, %", "texts to the alarm, median", "nine of ten within"],
        [
            [line["stream"], percent(line["alarms"]),
             *("" if "for 20,000" in line["stream"] or line[name] is None else f"{line[name]:,.0f}"
               for name in ("median", "nine_tenths"))]
            for line in parts["monitor"]
        ],
    )  # fmt: skip
    fourth = table(
        ["trace", "guarantee", "rows", "refused, %", "layers saved, %", "above the limit on the other half, %",
         "violated, drawn from all rows, %"],
        [
            [line["trace"].split("-")[0].upper(), line["guarantee"].replace("_", " ").replace("<=", "at most"),
             f"{line['rows']:,}", percent(line["refused"], 0),
             percent(line["saving"]), percent(line["above"]), percent(line["drawn_violated"])]
            for line in parts["real"]
        ],
    )  # fmt: skip
    return [needed_rows(), first, second, fourth, third]


def needed_rows() -> str:
    """How many rows a certificate with a confidence of 0.95 needs, by the limit and by what the rows show."""
    body = []
    for limit in (0.005, 0.01, 0.02, 0.05):
        exact = [
            smallest_number(lambda n, share=share, limit=limit: binomial_p_value(share * limit * n, n, limit) <= DELTA)
            for share in (0, 0.5, 0.75)
        ]
        drops = [
            smallest_number(lambda n, share=share, limit=limit: _drop(n, share * limit, limit) <= DELTA)
            for share in (0, 1, 2)
        ]
        body.append([f"{100 * limit:g} %", *("above 131,072" if n is None else f"{n:,}" for n in [*exact, *drops])])
    head = ["limit", "no loss", "half of the limit", "three quarters", "drop: no changes", "as many as the limit",
            "twice as many"]  # fmt: skip
    return table(head, body)


def _drop(rows: int, changed: float, limit: float) -> float:
    """The p-value of a drop in accuracy where a share of answers changes, half of them for the better."""
    count = round(changed * rows / 2)
    drops = np.concatenate([np.ones(count), -np.ones(count), np.zeros(rows - 2 * count)])
    return betting_p_value((drops + 1) / 2, (limit + 1) / 2, DELTA)


def write_tables(page: Path, lines: Sequence[Row]) -> None:
    """Replace what is between each pair of marks on the page.

    Raises:
        ValueError: If the page does not have five pairs of marks.
    """
    parts = page.read_text().split(MARK)
    written = tables(lines)
    if len(parts) != 2 * len(written) + 1:
        raise ValueError(f"page: {page} has {len(parts) - 1} lines '{MARK}'; it needs {2 * len(written)}")
    parts[1::2] = [f"\n\n{each}\n\n" for each in written]
    page.write_text(MARK.join(parts))


def main(argv: Sequence[str] | None = None) -> int:
    """Run what is missing, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--traces", nargs="*", type=Path, default=[], help="Files of traces of held-out rows.")
    parser.add_argument("--draws", type=int, default=1000, help="Draws from each population. Default: 1000.")
    parser.add_argument("--results", type=Path, default=RESULTS, help=f"Default: {RESULTS.name}.")
    parser.add_argument("--page", type=Path, default=PAGE, help="Page with the tables. Default: docs/certificates.md.")
    parser.add_argument("--table", action="store_true", help="Run nothing, and write the tables.")
    options = parser.parse_args(argv)
    torch.set_num_threads(1)
    lines = lines_of(options.results)
    keys = ("part", "kind", "population", "n", "draws", "way", "stream", "trace", "guarantee")
    done = {tuple(line.get(key) for key in keys) for line in lines}
    command = shlex.join(["python", "benchmarks/certificates.py", *(sys.argv[1:] if argv is None else argv)])
    for key, compute in [] if options.table else jobs(options.draws, options.traces):
        if tuple(key.get(name) for name in keys) in done:
            continue
        start = time.perf_counter()
        line = key | compute() | {"seconds": round(time.perf_counter() - start, 1), "command": command}
        lines.append(line)
        with options.results.open("a") as file:
            file.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)
    if options.page.exists():
        write_tables(options.page, lines)
    return 0


if __name__ == "__main__":
    sys.exit(main())
