"""curves.png: rewards, held-out accuracy, lengths, KL and gradient norms over the steps of all stages."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from jaxr1.report.history import History


@dataclass(frozen=True)
class Theme:
    """Colours of a picture, in hexadecimal."""

    paper: str
    ink: str
    soft: str
    grid: str
    lines: tuple[str, ...]


# Okabe and Ito's colours, told apart with any colour vision
LIGHT = Theme("#ffffff", "#1f2328", "#656d76", "#d8dee4", ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b"))
DARK = Theme("#161b22", "#e6edf3", "#9aa4ae", "#30363d", ("#56b4e9", "#e69f00", "#2fbf94", "#e09bc4", "#f0e442"))

_PANELS = (
    # title, y label, evaluated key, [(series, label)]
    ("Accuracy", "share of answers right", "accuracy", [("reward/accuracy", "training samples")]),
    ("Format", "share in the asked form", "format", [("reward/format", "training samples")]),
    ("Reward", "mean total reward", "", [("reward/mean", "training samples")]),
    ("Response length", "tokens, mean", "length_mean", [("rollout/length_mean", "training samples")]),
    ("KL to the reference", "nats per token", "", [("policy/kl", "")]),
    ("Gradient norm", "before clipping", "", [("policy/grad_norm", "")]),
)


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Centred mean over `window` values, fewer at the ends."""
    half = window // 2
    out = []
    for i in range(len(values)):
        part = values[max(0, i - half) : i + half + 1]
        out.append(sum(part) / len(part))
    return out


def draw_curves(history: History, theme: Theme = LIGHT) -> bytes:
    """The curves over global steps as a PNG: the panels that have data, stage boundaries drawn through all of them."""
    # figure objects only: pyplot would keep global state and may ask for a display
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    panels = []
    for title, unit, key, names in _PANELS:
        curves = [(label, history.series[name]) for name, label in names if history.series.get(name)]
        marked = [
            (f"held-out: {name}", [(e.x, value) for e in evaluations if (value := e.values.get(key)) is not None])
            for name, evaluations in history.evaluations.items()
            if key
        ]
        marked = [(label, points) for label, points in marked if points]
        if curves or marked:
            panels.append((title, unit, curves, marked, key in ("accuracy", "format")))
    columns = min(3, max(1, len(panels)))
    rows = max(1, math.ceil(len(panels) / columns))
    figure = Figure(figsize=(4.6 * columns, 3.3 * rows), dpi=130, facecolor=theme.paper, layout="constrained")
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr, call-arg]
    end = max((last for _, _, last in history.stages), default=1)
    for i, (title, unit, curves, marked, is_share) in enumerate(panels):
        axes = figure.add_subplot(rows, columns, i + 1)
        axes.set_facecolor(theme.paper)
        axes.set_title(title, color=theme.ink, fontsize=12, loc="left", pad=16)
        axes.set_xlabel("step, all stages", color=theme.soft, fontsize=9)
        axes.set_ylabel(unit, color=theme.soft, fontsize=9)
        axes.tick_params(colors=theme.soft, labelsize=8, length=0)
        axes.grid(color=theme.grid, linewidth=0.6)
        axes.set_axisbelow(True)
        for side in axes.spines.values():
            side.set_visible(False)
        for j, (label, points) in enumerate(marked):
            colour = theme.lines[j % (len(theme.lines) - 1) + 1]
            axes.plot(
                *_xy(points),
                color=colour,
                linewidth=1.8,
                marker="o",
                markersize=4,
                label=label,
                zorder=3,
                clip_on=False,
            )
        for label, points in curves:
            window = len(points) // 20
            for _, first, last in history.stages:  # a line and its mean end with the stage
                xs, ys = _xy(p for p in points if first < p[0] <= last)
                if not xs:
                    continue
                if window >= 3:  # noisy: the values pale, their mean over a twentieth of the run in front
                    axes.plot(xs, ys, color=theme.lines[0], linewidth=0.8, alpha=0.3)
                    ys = _running_mean(ys, window)
                axes.plot(xs, ys, color=theme.lines[0], linewidth=1.6, label=label or None)
                label = ""  # once in the legend
        axes.set_xlim(0, max(end, 1))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
        if is_share:
            axes.set_ylim(-0.03, 1.03)
        else:
            low, high = axes.get_ylim()
            axes.set_ylim(min(0.0, low), high)
        for j, (name, first, last) in enumerate(history.stages):
            if j > 0:
                axes.axvline(first, color=theme.soft, linewidth=0.8, linestyle=(0, (4, 3)))
            if last - first >= 0.04 * end:
                short = name if len(name) <= 18 else name[:17] + "…"
                # a stage's name above its part of the axis; dollar signs would start mathematics
                axes.text((first + last) / 2, 1.015, short.replace("$", r"\$"), transform=axes.get_xaxis_transform(),
                          ha="center", va="bottom", fontsize=8, color=theme.soft)  # fmt: skip
        if marked or any(label for label, _ in curves):
            axes.legend(fontsize=8, frameon=False, labelcolor=theme.ink)
    if not panels:
        figure.text(0.5, 0.5, "no metrics yet", color=theme.soft, ha="center")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=theme.paper, metadata={"Software": None})
    return buffer.getvalue()


def _xy(points: Iterable[tuple[int, float | None]]) -> tuple[list[int], list[float]]:
    kept = [(x, y) for x, y in points if y is not None]
    return [x for x, _ in kept], [y for _, y in kept]
