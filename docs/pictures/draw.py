"""Draws docs/pictures/kl_per_layer.svg from the figures of docs/results/digits_matrix.json.

python docs/pictures/draw.py

Its panels and axes serve other drawings too: `python -m docs.results.make`.
"""

import json
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIGURES = HERE.parent / "results" / "digits_matrix.json"
PANELS = {"none": "plain ladder", "context": "with a DCT context"}
LEFT, TOP, WIDTH, HEIGHT, GAP = 62, 62, 330, 190, 56  # of a panel, in pixels
PITCH = HEIGHT + 100  # from one row of panels to the next
STYLE = """
    text { font: 14px system-ui, "Segoe UI", Helvetica, Arial, sans-serif; fill: #1f2328; }
    .small { font-size: 12.5px; fill: #57606a; }
    .axis { stroke: #57606a; stroke-width: 1; } .grid { stroke: #d1d9e0; stroke-width: 1; }
    .seed { fill: none; stroke: #0550ae; stroke-width: 1.4; stroke-opacity: 0.55; }
    .dot { fill: #0550ae; } .context { fill: #b35900; }
    @media (prefers-color-scheme: dark) {
      text { fill: #e6edf3; } .small { fill: #9ea7b3; }
      .axis { stroke: #9ea7b3; } .grid { stroke: #30363d; }
      .seed { stroke: #6cb0ff; } .dot { fill: #6cb0ff; } .context { fill: #f0a04b; }
    }"""


def main() -> None:
    """Write the drawing beside this file."""
    matrix = json.loads(FIGURES.read_text())
    chosen = {title: of_arm(matrix["cells"], arm) for arm, title in PANELS.items()}
    plain, context = chosen.values()
    text = (
        f"The top latent of the plain ladder costs {top_kl(plain)} nats, depending on the seed; "
        f"the context costs {top_kl(context)} nats for every seed."
    )
    drawing = kl_per_layer(chosen, matrix["dataset"], matrix["epochs"], text)
    (HERE / "kl_per_layer.svg").write_text(drawing, encoding="utf-8")


def of_arm(cells: list[dict], arm: str) -> list[dict]:
    """The runs of one model."""
    return [cell for cell in cells if cell["arm"] == arm]


def top_kl(runs: list[dict]) -> str:
    """The range of the top latent's KL over the seeds."""
    kl = [run["layers"][0]["kl"] for run in runs]
    return f"{min(kl):.2f} to {max(kl):.2f}"


def kl_per_layer(chosen: dict[str, list[dict]], dataset: str, epochs: int, text: str) -> str:
    """An SVG with a panel for each model, two in a row; chosen: its runs, by its title."""
    highest = max(layer["kl"] for runs in chosen.values() for c in runs for layer in c["layers"])
    step = tick_step(highest)
    top = step * (int(highest / step) + 1)
    parts = [panel(i, title, runs, top, step) for i, (title, runs) in enumerate(chosen.items())]
    counts = sorted({len(runs) for runs in chosen.values()})
    seeds = " to ".join(str(count) for count in (counts[0], counts[-1])[: len(counts)])
    over = "of one seed" if counts == [1] else f"over {seeds} seeds"
    title = f"KL of each latent layer {over}: {dataset}, {epochs} epochs"
    return svg(title, text, "".join(parts), rows=(len(chosen) + 1) // 2)


def svg(title: str, text: str, content: str, rows: int = 1, style: str = "", extra: int = 0) -> str:
    """The file of a drawing of `rows` rows of panels; extra: pixels below them."""
    size = f"{2 * WIDTH + GAP + LEFT + 20} {TOP + (rows - 1) * PITCH + HEIGHT + 52 + extra}"
    return f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" role="img">
  <title>{title}</title>
  <desc>{text}</desc>
  <style>{STYLE}{style}
  </style>
  <text x="{LEFT}" y="20" font-weight="600">{title}</text>
{content}</svg>
"""


def tick_step(highest: float) -> int:
    """Between the ticks of an axis that begins at 0; at most ten of them."""
    return max(2, next(step for step in round_steps(0) if highest < 10 * step))


def round_steps(power: int) -> Iterator[float]:
    """1, 2 and 5 times each power of ten, from this one on; whole numbers from power 0 on."""
    return (factor * 10**p for p in range(power, 9) for factor in (1, 2, 5))


def panel(index: int, title: str, runs: list[dict], top: int, tick: int) -> str:
    """One model: layers from the top along x, KL in nats along y, a line for each seed."""
    left, upper = LEFT + index % 2 * (WIDTH + GAP), TOP + index // 2 * PITCH
    names = layer_names(runs[0])
    step = WIDTH / len(names)

    def x(layer: int) -> float:
        return left + (layer + 0.5) * step

    def y(kl: float) -> float:
        return upper + HEIGHT * (1.0 - kl / top)

    lines = [f'<text x="{left}" y="{upper - 16}">{title}</text>']
    for value in range(0, top + 1, tick):
        unit = " nats" if value == top and index % 2 == 0 else ""
        lines += grid_line(left, y(value), f"{value}{unit}", value == 0)
    for layer, name in enumerate(names):
        lines.append(x_label(x(layer), upper, name))
    for run in runs:
        points = [(x(i), y(layer["kl"])) for i, layer in enumerate(run["layers"])]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        lines.append(f'<polyline class="seed" points="{path}"/>')
        for layer, (a, b) in zip(run["layers"], points, strict=True):
            kind = "context" if layer["context"] else "dot"
            lines.append(f'<circle class="{kind}" cx="{a:.1f}" cy="{b:.1f}" r="3.6"/>')
    lines.append(below(left, upper, "latent layers, from the top"))
    return "".join(f"  {line}\n" for line in lines)


def grid_line(left: int, y: float, label: str, axis: bool = False) -> list[str]:
    """A horizontal line through a panel, and what it stands for."""
    kind = "axis" if axis else "grid"
    text = f'<text class="small" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{label}</text>'
    return [f'<path class="{kind}" d="M{left} {y:.1f}H{left + WIDTH}"/>', text]


def x_label(x: float, upper: int, text: str) -> str:
    """What a place on a panel's x axis stands for."""
    place = f'x="{x:.1f}" y="{upper + HEIGHT + 19}" text-anchor="middle"'
    return f'<text class="small" {place}>{text}</text>'


def below(left: int, upper: int, text: str) -> str:
    """What a panel's x axis is."""
    place = f'x="{left + WIDTH / 2}" y="{upper + HEIGHT + 40}"'
    return f'<text class="small" {place} text-anchor="middle">{text}</text>'


def layer_names(run: dict) -> list[str]:
    """The layers' numbers, from 0 on top; the context is called by its name."""
    return ["context" if layer["context"] else str(i) for i, layer in enumerate(run["layers"])]


if __name__ == "__main__":
    main()
