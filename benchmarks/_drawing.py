"""The picture of `looks.py`: looks against delay, one panel for each world."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import matplotlib as mpl

mpl.use("agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

if TYPE_CHECKING:
    from collections.abc import Sequence

    from matplotlib.axes import Axes

    from looks import Played, Point

# The colours of Okabe and Ito, which colour-blind readers can tell apart; and shapes, for print.
BLACK, ORANGE, BLUE, GREEN, GREY = "#000000", "#D55E00", "#0072B2", "#009E73", "#767676"
LABELLED = (2.0, 5.0, 10.0, 30.0)  # intervals whose dot says which it is
PANELS = 9


def draw(results: Sequence[Played], file: Path) -> None:
    """Write the picture. If there are more worlds than panels, the others are left out."""
    worlds = chosen(list(dict.fromkeys(each.world for each in results)))
    rows = -(-len(worlds) // 3)
    figure, grid = plt.subplots(rows, min(3, len(worlds)), figsize=(11, 3.5 * rows + 0.9),
                                squeeze=False)  # fmt: skip
    for world, axes in zip(worlds, grid.flat, strict=False):
        panel(axes, [each for each in results if each.world == world])
    for axes in grid.flat[len(worlds) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("looks per task")
    for axes in grid[-1]:
        axes.set_xlabel("mean delay, seconds")
    lines, names = grid.flat[0].get_legend_handles_labels()
    figure.legend(lines, names, loc="upper center", ncols=4, frameon=False, fontsize=12)
    figure.tight_layout(rect=(0, 0, 1, 1 - 0.55 / figure.get_figheight()))
    figure.savefig(file, dpi=150, facecolor="white", metadata={"Software": None})
    plt.close(figure)


def chosen(worlds: list[str]) -> list[str]:
    """At most nine; evenings of different kinds look alike."""
    spare = [world for world in worlds if "evening" in world and not world.startswith("fast")]
    spare += [world for world in worlds if "humps" in world and world[0] in "tr"]
    while spare and len(worlds) > PANELS:
        worlds.remove(spare.pop())
    return worlds[:PANELS]


def panel(axes: Axes, results: Sequence[Played]) -> None:
    """One world: curves over the look prices, and the fixed intervals."""
    fixed = results[0].fixed
    curve(axes, list(fixed.values()), GREY, "s", "fixed interval", linewidth=1.2)
    for interval in LABELLED:
        axes.annotate(
            f"{interval:g} s", fixed[interval], xytext=(6, 3), textcoords="offset points",
            color=GREY, fontsize=10,
        )  # fmt: skip
    if results[0].is_steady:
        curve(axes, [each.first for each in results], BLUE, "^", "ours, first task", linestyle="--")
    curve(axes, [each.ours for each in results], ORANGE, "o", "ours, after 50 tasks")
    curve(axes, [each.optimum for each in results], BLACK, "x", "optimum", linestyle=":")
    axes.set(xscale="log", yscale="log")
    axes.set_title(results[0].world, fontsize=13)
    frame(axes, results)


def curve(
    axes: Axes,
    points: Sequence[Point],
    colour: str,
    marker: str,
    label: str,
    *,
    linestyle: str = "-",
    linewidth: float = 1.8,
) -> None:
    """One policy."""
    delays, looks = zip(*sorted(points), strict=True)
    axes.plot(delays, looks, color=colour, marker=marker, label=label, linestyle=linestyle,
              linewidth=linewidth, markersize=6)  # fmt: skip


def frame(axes: Axes, results: Sequence[Played]) -> None:
    """Limit the axes to the surroundings of our curves, with plain numbers."""
    ours = [point for each in results for point in (each.ours, each.optimum)]
    ours += [each.first for each in results if each.is_steady]
    delays, looks = zip(*ours, strict=True)
    axes.set_xlim(min(delays) / 1.8, max(*delays, 16) * 1.8)
    axes.set_ylim(min(looks) / 1.6, max(looks) * 5)
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
        axis.set_minor_formatter(NullFormatter())
    axes.grid(visible=True, color="#e4e4e4", linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(labelsize=10.5)
