"""curves.png: rewards, held-out scores, lengths, KL and gradient norms over all stages."""

from __future__ import annotations

import io
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from jaxr1.base.names import is_component
from jaxr1.report.history import History, scores

Points = list[tuple[int, float]]


@dataclass(frozen=True)
class Theme:
    """Colours of a picture, in hexadecimal."""

    paper: str
    ink: str
    soft: str
    grid: str
    lines: tuple[str, ...]


# Okabe and Ito's colours, told apart with any colour vision.
_ON_LIGHT = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b")
_ON_DARK = ("#56b4e9", "#e69f00", "#2fbf94", "#e09bc4", "#f0e442")
LIGHT = Theme("#ffffff", "#1f2328", "#656d76", "#d8dee4", _ON_LIGHT)
DARK = Theme("#161b22", "#e6edf3", "#9aa4ae", "#30363d", _ON_DARK)


@dataclass(frozen=True)
class Panel:
    """One of the plots.

    Attributes:
      title, unit: of it, and of its vertical axis.
      series: the metric of training that it shows.
      label: of that line in the legend, "" for none.
      evaluated: the value of evaluations that it shows, "" for none.
    """

    title: str
    unit: str
    series: str
    label: str = ""
    evaluated: str = ""

    def trained(self, history: History) -> Points:
        """What training wrote."""
        return history.series.get(self.series, [])

    def held_out(self, history: History) -> dict[str, Points]:
        """What evaluations found, by the name of the set."""
        found = {}
        for name, evaluations in history.evaluations.items():
            values = [(e.x, e.values.get(self.evaluated)) for e in evaluations]
            if points := [(x, value) for x, value in values if value is not None]:
                found[name] = points
        return found


def panels(history: History) -> list[Panel]:
    """Those that have data: one for each score, then what every run has."""
    training = "training samples"
    evaluated = []
    for evaluations in history.evaluations.values():
        evaluated += [e.values for e in evaluations]
    trained = [name.partition("/")[2] for name in history.series if is_component(name)]
    names = dict.fromkeys([*scores(evaluated), *trained])
    found = [Panel(name.capitalize(), "mean", f"reward/{name}", training, name) for name in names]
    found += [
        Panel("Reward", "mean total reward", "reward/mean", training),
        Panel("Response length", "tokens, mean", "rollout/length_mean", training, "length_mean"),
        Panel("KL to the reference", "nats per token", "policy/kl"),
        Panel("KL to the reference", "nats per token, in the reward", "reward/kl"),
        Panel("Pairs in the right order", "share", "policy/accuracy"),
        Panel("Margin of pairs", "beta x nats", "policy/margin"),
        Panel("The critic", "explained variance", "critic/explained_variance"),
        Panel("Gradient norm", "before clipping", "policy/grad_norm"),
    ]
    return [panel for panel in found if panel.trained(history) or panel.held_out(history)]


def draw_curves(history: History, theme: Theme = LIGHT) -> bytes:
    """The curves over global steps as a PNG, stage boundaries drawn through all panels."""
    # Figure objects only: pyplot would keep global state and may ask for a display.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    shown = panels(history)
    columns = min(3, max(1, len(shown)))
    rows = max(1, math.ceil(len(shown) / columns))
    figure = Figure(
        figsize=(4.6 * columns, 3.3 * rows), dpi=130, facecolor=theme.paper, layout="constrained"
    )
    FigureCanvasAgg(figure)
    figure.get_layout_engine().set(w_pad=0.12, h_pad=0.1)  # type: ignore[union-attr, call-arg]
    for i, panel in enumerate(shown):
        axes = figure.add_subplot(rows, columns, i + 1)
        _style(axes, panel, theme)
        _draw_held_out(axes, panel.held_out(history), theme)
        _draw_training(axes, panel, history, theme)
        _limit(axes, panel, history)
        _draw_stages(axes, history, theme)
        if panel.held_out(history) or (panel.label and panel.trained(history)):
            axes.legend(fontsize=8, frameon=False, labelcolor=theme.ink)
    if not shown:
        figure.text(0.5, 0.5, "no metrics yet", color=theme.soft, ha="center")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", facecolor=theme.paper, metadata={"Software": None})
    return buffer.getvalue()


def _style(axes: Any, panel: Panel, theme: Theme) -> None:
    axes.set_facecolor(theme.paper)
    axes.set_title(panel.title, color=theme.ink, fontsize=12, loc="left", pad=16)
    axes.set_xlabel("step, all stages", color=theme.soft, fontsize=9)
    axes.set_ylabel(panel.unit, color=theme.soft, fontsize=9)
    axes.tick_params(colors=theme.soft, labelsize=8, length=0)
    axes.grid(color=theme.grid, linewidth=0.6)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def _draw_held_out(axes: Any, sets: dict[str, Points], theme: Theme) -> None:
    """A marked line for each set, in front of the others."""
    dots = dict(marker="o", markersize=4, linewidth=1.8, zorder=3, clip_on=False)
    for j, (name, points) in enumerate(sets.items()):
        colour = theme.lines[j % (len(theme.lines) - 1) + 1]
        axes.plot(*_xy(points), color=colour, label=f"held-out: {name}", **dots)


def _draw_training(axes: Any, panel: Panel, history: History, theme: Theme) -> None:
    """What training wrote: a noisy line is pale, its mean over a twentieth of the run in front."""
    points, label, colour = panel.trained(history), panel.label, theme.lines[0]
    window = len(points) // 20
    for _, first, last in history.stages:  # a line and its mean end with the stage
        xs, ys = _xy(p for p in points if first < p[0] <= last)
        if not xs:
            continue
        if window >= 3:
            axes.plot(xs, ys, color=colour, linewidth=0.8, alpha=0.3)
            ys = _running_mean(ys, window)
        axes.plot(xs, ys, color=colour, linewidth=1.6, label=label or None)
        label = ""  # once in the legend


def _limit(axes: Any, panel: Panel, history: History) -> None:
    """Shares are drawn from 0 to 1; everything else from 0 at the highest."""
    from matplotlib.ticker import MaxNLocator

    end = max((last for _, _, last in history.stages), default=1)
    axes.set_xlim(0, max(end, 1))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, nbins=6))
    values = [y for _, y in panel.trained(history)]
    for points in panel.held_out(history).values():
        values += [y for _, y in points]
    if panel.evaluated not in ("", "length_mean") and all(0 <= y <= 1 for y in values):
        axes.set_ylim(-0.03, 1.03)
    else:
        low, high = axes.get_ylim()
        axes.set_ylim(min(0.0, low), high)


def _draw_stages(axes: Any, history: History, theme: Theme) -> None:
    """A line between stages, and the name of each above its part of the axis."""
    end = max((last for _, _, last in history.stages), default=1)
    across = axes.get_xaxis_transform()
    centred = dict(ha="center", va="bottom", fontsize=8, color=theme.soft)
    for j, (name, first, last) in enumerate(history.stages):
        if j > 0:
            axes.axvline(first, color=theme.soft, linewidth=0.8, linestyle=(0, (4, 3)))
        if last - first >= 0.04 * end:
            short = name if len(name) <= 18 else name[:17] + "…"
            # Dollar signs would start mathematics.
            text = short.replace("$", r"\$")
            axes.text((first + last) / 2, 1.015, text, transform=across, **centred)


def _running_mean(values: Sequence[float], window: int) -> list[float]:
    """Centred mean over `window` values, fewer at the ends."""
    half = window // 2
    out = []
    for i in range(len(values)):
        part = values[max(0, i - half) : i + half + 1]
        out.append(sum(part) / len(part))
    return out


def _xy(points: Iterable[tuple[int, float]]) -> tuple[list[int], list[float]]:
    kept = list(points)
    return [x for x, _ in kept], [y for _, y in kept]
