"""Figures of early exit, drawn by matplotlib (extra `plot`) without pyplot: no global state, no windows."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..evaluation.curves import CurvePoint, Point, check_direction
from ..utils.imports import needs

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colour-blind readers can distinguish these colours, and so can readers of a black-and-white print.
LINE, CHOSEN, INK, FAINT = "#2166ac", "#b84a00", "#24292f", "#d8dee4"
# Line styles of several methods: colours for colour-blind readers (Okabe and Ito), with dashes for similar colours.
# Each also has a marker, so that a print without colours tells them apart.
MARKERS = ("o", "s", "^", "D", "v", "P", "h", "X")
STYLES: tuple[tuple[str, Any], ...] = (
    ("#0072b2", "-"), ("#d55e00", "-"), ("#009e73", "-"), ("#7f7f7f", (0, (1, 1))), ("#cc79a7", "-"),
    ("#e69f00", (0, (5, 2))), ("#56b4e9", (0, (5, 2))), ("#000000", "-"),
)  # fmt: skip
SIZE = (7.5, 3.6)  # inches; at this DPI twice the width of a text column on the Hub, for sharp screens
DPI = 200
SMALL, NORMAL = 9.5, 11  # points


def tradeoff_figure(
    curve: Sequence[CurvePoint], metric: str, depth: int, chosen: Any = None, on: str = ""
) -> "Figure":
    """Plot score against layers run, with the score at full depth as a line, and that of the majority if it is near.

    Args:
        curve: Curve from `tradeoff_curve`.
        metric: Name of the metric, for the title and the axis.
        depth: Number of layers of the model, L.
        chosen: Chosen threshold, whose point is marked if the curve has it. Default: None, full depth, whose line is
            always drawn.
        on: Name of the data set, for the title. Default: none.

    Returns:
        The matplotlib figure.

    Raises:
        ImportError: If matplotlib is not installed.

    Examples:
        >>> from adaexit_hf import CurvePoint
        >>> curve = [CurvePoint(0.9, 0.88, 4.0, 0.667), CurvePoint(None, 0.91, 12.0, 0.0)]
        >>> figure = tradeoff_figure(curve, "accuracy", depth=12, chosen=0.9)
        >>> [text.get_text().splitlines() for text in figure.axes[0].texts]
        [['threshold 0.9', '0.8800, 4.00 layers'], ['full depth 0.9100']]
    """
    figure, axes = _canvas(f"{metric[:1].upper()}{metric[1:]} and layers run{on and f': {on}'}")
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    layers, scores = [point.mean_layers for point in curve], [point.score for point in curve]
    axes.plot(layers, scores, color=LINE, linewidth=1.6, marker="o", markersize=3)
    for point in curve:
        if point.threshold is None:
            axes.axhline(point.score, color=INK, linewidth=1, linestyle=(0, (4, 3)), zorder=1)
            axes.annotate(
                f"full depth {point.score:.4f}", (0, point.score), (4, 4), xycoords=("axes fraction", "data"),
                textcoords="offset points", fontsize=SMALL, color=INK,
            )  # fmt: skip
        elif point.threshold == chosen:
            axes.plot(point.mean_layers, point.score, "o", color=CHOSEN, markersize=9, zorder=3)
            # Place the label away from the curve: below a rising one, above a falling one, left near the right edge.
            later = [other.score for other in curve if other.mean_layers > point.mean_layers]
            above, left = bool(later) and point.score > sum(later) / len(later), point.mean_layers > 0.7 * depth
            axes.annotate(
                f"threshold {point.threshold:.4g}\n{point.score:.4f}, {point.mean_layers:.2f} layers",
                (point.mean_layers, point.score), (0 if left else 10, 9 if above else -14 if left else -9),
                color=CHOSEN, fontsize=SMALL, textcoords="offset points", va="bottom" if above else "top",
                ha="right" if left else "left", zorder=1.5, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
            )  # fmt: skip
    low, high = min(scores), max(scores)
    majority = curve[0].majority
    if majority is not None and low - (high - low) < majority < high:  # further off it would press the curve together
        axes.axhline(majority, color=INK, linewidth=1, linestyle=(0, (1, 2)), zorder=1)
        axes.annotate(
            f"most frequent answer {majority:.4f}", (1, majority), (-4, 4), xycoords=("axes fraction", "data"),
            textcoords="offset points", fontsize=SMALL, color=INK, ha="right",
        )  # fmt: skip
    axes.margins(y=0.22)  # room for the labels of the points
    axes.set_xlim(min(1.0, *layers) - 0.02 * depth, 1.02 * depth)
    axes.set_xticks(range(depth, 0, -(1 + depth // 13)))
    axes.set_xlabel(f"mean layers run per text, of {depth}")
    axes.set_ylabel(_with_direction(metric, curve))
    return figure


def comparison_figure(
    curves: Mapping[str, Sequence[Point]],
    metric: str,
    depth: int,
    fixed: Mapping[str, tuple[float, float]] | None = None,
    on: str = "",
    lowest: float | None = None,
) -> "Figure":
    """Plot score against layers run with one line per method.

    Args:
        curves: Curves from `tradeoff_curve` or `mean_curve` by name of the method, one to eight; more could not be
            distinguished. The position in the mapping determines the colour, so an empty curve is not drawn but keeps
            the colours of the others.
        metric: Name of the metric, for the title and the axis.
        depth: Number of layers of the models, L.
        fixed: `(layers, score)` of models without exits, by name. Each is a labelled point. Default: none.
        on: Name of the data set, for the title. Default: none.
        lowest: Lowest score on the axis; lines below it are cut off. Default: everything is shown.

    Returns:
        The matplotlib figure.

    Raises:
        ValueError: If there are no curves or more than eight, or if they are of metrics of different directions.
        ImportError: If matplotlib is not installed.

    Examples:
        >>> from adaexit_hf import CurvePoint
        >>> first = [CurvePoint(0.9, 0.88, 4.0, 0.667), CurvePoint(None, 0.91, 12.0, 0.0)]
        >>> second = [CurvePoint(0.9, 0.86, 6.0, 0.5), CurvePoint(None, 0.92, 12.0, 0.0)]
        >>> curves = {"BERxiT": first, "DeeBERT": second}
        >>> figure = comparison_figure(curves, "accuracy", depth=12, fixed={"6 layers": (6.0, 0.87)})
        >>> [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
        ['BERxiT', 'DeeBERT']
    """
    if not 1 <= len(curves) <= len(STYLES):
        raise ValueError(f"curves: got {len(curves)}; pass 1 to {len(STYLES)}, or draw several figures")
    figure, axes = _canvas(f"{metric[:1].upper()}{metric[1:]} and layers run{on and f': {on}'}")
    axes.grid(axis="y", color=FAINT, linewidth=0.8)
    for (name, curve), (color, dashes), marker in zip(curves.items(), STYLES, MARKERS, strict=False):
        if curve:
            points = sorted((point.mean_layers, point.score) for point in curve)
            style = {"color": color, "linestyle": dashes, "marker": marker, "markersize": 4, "markevery": 0.2}
            axes.plot(*zip(*points, strict=True), linewidth=1.6, label=name, **style)
    for point in (fixed or {}).values():
        axes.plot(*point, "D", color=INK, markersize=5, zorder=4)
    if lowest is not None:
        axes.set_ylim(bottom=lowest)
    bottom, top = axes.get_ylim()
    for names, point in _labels(fixed or {}, apart=0.06 * (top - bottom)):
        axes.annotate(
            names, point, (8, 0), textcoords="offset points", fontsize=SMALL, color=INK, zorder=4, va="center",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )  # fmt: skip
    axes.legend(loc="center left", bbox_to_anchor=(1.06, 0.5), frameon=False, fontsize=SMALL, labelcolor=INK)
    axes.set_xlabel(f"mean layers run per text, of {depth}")
    axes.set_ylabel(_with_direction(metric, [point for curve in curves.values() for point in curve]))
    return figure


def _with_direction(metric: str, points: Sequence[Point]) -> str:
    return metric if check_direction(points) else f"{metric} (lower is better)"


def _labels(fixed: Mapping[str, tuple[float, float]], apart: float) -> list[tuple[str, tuple[float, float]]]:
    """Return labels and their positions, the deepest first; points of equal layers closer than `apart` share a label.

    >>> _labels({"a": (6.0, 0.8), "b": (6.0, 0.81), "c": (3.0, 0.8)}, apart=0.02)
    [('b, a', (6.0, 0.81)), ('c', (3.0, 0.8))]
    """
    labels: list[tuple[str, tuple[float, float]]] = []
    for name, (layers, score) in sorted(fixed.items(), key=lambda item: item[1], reverse=True):
        if labels and labels[-1][1][0] == layers and labels[-1][1][1] - score < apart:
            labels[-1] = (f"{labels[-1][0]}, {name}", labels[-1][1])
        else:
            labels.append((name, (layers, score)))
    return labels


def exit_figure(histogram: Mapping[int, int], depth: int, on: str = "") -> "Figure":
    """Plot the percentage of texts that leave after each layer.

    Args:
        histogram: Number of texts by exit layer, 1..L, from `exit_histogram`.
        depth: Number of layers of the model, L.
        on: Name of the data set, for the title. Default: none.

    Returns:
        The matplotlib figure.

    Raises:
        ImportError: If matplotlib is not installed.

    Examples:
        >>> figure = exit_figure({6: 30, 12: 10}, depth=12)
        >>> [text.get_text() for text in figure.axes[0].texts]  # percent
        ['75', '25']
    """
    figure, axes = _canvas(f"Where texts leave{on and f': {on}'}")
    total = sum(histogram.values())
    shares = {layer: 100 * count / total for layer, count in sorted(histogram.items())}
    axes.bar(range(len(shares)), list(shares.values()), color=LINE, width=0.75)
    for bar, share in enumerate(shares.values()):  # labels at the bars replace the y-axis
        label = "<1" if 0 < share < 0.5 else f"{share:.0f}"
        axes.annotate(label, (bar, share), (0, 3), textcoords="offset points", ha="center", fontsize=SMALL, color=INK)
    axes.set_xlim(-0.6, len(shares) - 0.4)
    axes.set_xticks(range(len(shares)), [str(layer) for layer in shares])
    axes.set_yticks([])
    axes.set_xlabel(f"layers run, of {depth}")
    axes.set_ylabel("texts (%)")
    return figure


def _canvas(title: str) -> tuple["Figure", "Axes"]:
    """Return an empty figure and its axes. The background is opaque, so that the text is readable in dark mode."""
    with needs("plot"):
        from matplotlib.figure import Figure

    figure = Figure(figsize=SIZE, dpi=DPI, facecolor="white", layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(title, loc="left", fontsize=NORMAL, fontweight="bold", color=INK, pad=10)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(INK)
    axes.tick_params(length=0, labelsize=SMALL, labelcolor=INK)
    for axis in (axes.xaxis, axes.yaxis):
        axis.label.set(fontsize=NORMAL, color=INK)
    return figure, axes
