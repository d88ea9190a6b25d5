"""Draws docs/pictures/kl_per_layer.svg from the figures of docs/results/digits_matrix.json.

python docs/pictures/draw.py
"""

import json
from pathlib import Path

HERE = Path(__file__).resolve().parent
FIGURES = HERE.parent / "results" / "digits_matrix.json"
PANELS = {"none": "plain ladder", "context": "with a DCT context"}
LEFT, TOP, WIDTH, HEIGHT, GAP = 62, 62, 330, 190, 56  # of a panel, in pixels
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
    cells = json.loads(FIGURES.read_text())["cells"]
    chosen = {arm: [c for c in cells if c["arm"] == arm] for arm in PANELS}
    highest = max(layer["kl"] for runs in chosen.values() for c in runs for layer in c["layers"])
    top = 2.0 * (int(highest / 2.0) + 1)
    parts = [panel(i, arm, chosen[arm], top) for i, arm in enumerate(PANELS)]
    size = f"{2 * WIDTH + GAP + LEFT + 20} {HEIGHT + TOP + 52}"
    seeds = len(chosen["none"])
    title = f"KL of each latent layer over {seeds} seeds: digits, 60 epochs"
    text = f"""<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {size}" role="img">
  <title>{title}</title>
  <desc>{description(chosen)}</desc>
  <style>{STYLE}
  </style>
  <text x="{LEFT}" y="20" font-weight="600">{title}</text>
{"".join(parts)}</svg>
"""
    (HERE / "kl_per_layer.svg").write_text(text, encoding="utf-8")


def description(chosen: dict[str, list[dict]]) -> str:
    """What the picture shows, in words."""
    tops = {arm: [run["layers"][0]["kl"] for run in runs] for arm, runs in chosen.items()}
    ranges = {arm: f"{min(kl):.2f} to {max(kl):.2f}" for arm, kl in tops.items()}
    return (
        f"The top latent of the plain ladder carries {ranges['none']} nats, depending on the seed; "
        f"the context carries {ranges['context']} nats for every seed."
    )


def panel(index: int, arm: str, runs: list[dict], top: float) -> str:
    """One model: layers from the top along x, KL in nats along y, a line for each seed."""
    left, names = LEFT + index * (WIDTH + GAP), layer_names(runs[0])
    step = WIDTH / len(names)

    def x(layer: int) -> float:
        return left + (layer + 0.5) * step

    def y(kl: float) -> float:
        return TOP + HEIGHT * (1.0 - kl / top)

    lines = [f'<text x="{left}" y="{TOP - 16}">{PANELS[arm]}</text>']
    for tick in range(0, int(top) + 1, 2):
        kind = "axis" if tick == 0 else "grid"
        lines.append(f'<path class="{kind}" d="M{left} {y(tick):.1f}H{left + WIDTH}"/>')
        label = f'<text class="small" x="{left - 8}" y="{y(tick) + 4:.1f}" text-anchor="end">'
        lines.append(f"{label}{tick}{' nats' if tick == top and index == 0 else ''}</text>")
    for layer, name in enumerate(names):
        place = f'x="{x(layer):.1f}" y="{TOP + HEIGHT + 19}" text-anchor="middle"'
        lines.append(f'<text class="small" {place}>{name}</text>')
    for run in runs:
        points = [(x(i), y(layer["kl"])) for i, layer in enumerate(run["layers"])]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        lines.append(f'<polyline class="seed" points="{path}"/>')
        for layer, (a, b) in zip(run["layers"], points, strict=True):
            kind = "context" if layer["context"] else "dot"
            lines.append(f'<circle class="{kind}" cx="{a:.1f}" cy="{b:.1f}" r="3.6"/>')
    lines.append(
        f'<text class="small" x="{left + WIDTH / 2}" y="{TOP + HEIGHT + 40}" '
        'text-anchor="middle">latent layers, from the top</text>'
    )
    return "".join(f"  {line}\n" for line in lines)


def layer_names(run: dict) -> list[str]:
    """The context's letter, and the numbers of the ladder's layers."""
    first = 1 - sum(layer["context"] for layer in run["layers"])
    return [
        "context" if layer["context"] else f"z{i + first}" for i, layer in enumerate(run["layers"])
    ]


if __name__ == "__main__":
    main()
