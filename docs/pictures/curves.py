"""Draws how −ELBO and the top latent's KL go over training, a line for each run."""

from docs.pictures.draw import (
    GAP,
    HEIGHT,
    LEFT,
    TOP,
    WIDTH,
    below,
    grid_line,
    round_steps,
    svg,
    x_label,
)

LIGHT = ("#0550ae", "#b35900", "#1a7f37", "#8250df", "#bf3989", "#57606a")  # by model
DARK = ("#6cb0ff", "#f0a04b", "#4ac26b", "#c297ff", "#ff80c8", "#9ea7b3")
SETTLED = 0.1  # share of the epochs after which the axis has room for every curve
TICKS = 5
LEGEND = 22  # pixels a line

Curve = tuple[int, list[int], list[float]]  # the model's number, epochs, values


def draw_curves(models: list[str], nelbo: list[Curve], top: list[Curve], dataset: str) -> str:
    """An SVG; nelbo, top: of every run, nats on the validation images."""
    colours = "".join(
        f"\n    .m{i} {{ stroke: {colour}; }}" for i, colour in enumerate(LIGHT[: len(models)])
    )
    dark = "".join(f" .m{i} {{ stroke: {colour}; }}" for i, colour in enumerate(DARK))
    style = f"{colours}\n    .run {{ fill: none; stroke-width: 1.6; }}"
    style += f"\n    @media (prefers-color-scheme: dark) {{{dark} }}"
    parts = panel(0, "−ELBO (nats)", nelbo) + panel(1, "KL of the top latent (nats)", top)
    for i, name in enumerate(models):
        y = TOP + HEIGHT + 52 + LEGEND * (i + 1) - 8
        parts.append(f'<path class="run m{i % len(LIGHT)}" d="M{LEFT} {y - 4}h28"/>')
        parts.append(f'<text class="small" x="{LEFT + 38}" y="{y}">{name}</text>')
    content = "".join(f"  {line}\n" for line in parts)
    title = f"Validation over training: {dataset}"
    return svg(title, description(models, nelbo, top), content, 1, style, LEGEND * len(models))


def description(models: list[str], nelbo: list[Curve], top: list[Curve]) -> str:
    """What the picture shows, in words."""
    sentences = []
    for number, name in enumerate(models):
        ends = [[one[2][-1] for one in curves if one[0] == number] for curves in (nelbo, top)]
        spans = [f"{min(end):.2f} to {max(end):.2f}" for end in ends]
        sentences.append(f"{name} ends at −ELBO {spans[0]}, KL of the top latent {spans[1]} nats.")
    return " ".join(sentences)


def panel(index: int, title: str, curves: list[Curve]) -> list[str]:
    """Epochs along x, nats along y; the first epochs of what falls fast are cut off."""
    left, last = LEFT + index * (WIDTH + GAP), max(curve[1][-1] for curve in curves)
    low, high, step = limits(curves)

    def x(epoch: int) -> float:
        return left + WIDTH * (epoch - 1) / max(1, last - 1)

    def y(value: float) -> float:
        return TOP + HEIGHT * (1.0 - (value - low) / (high - low))

    lines = [f'<text x="{left}" y="{TOP - 16}">{title}</text>']
    for tick in range(round((high - low) / step) + 1):
        value = low + tick * step
        lines += grid_line(left, y(value), f"{value:.4g}", tick == 0)
    for epoch in sorted({1, last // 2, last} - {0}):
        lines.append(x_label(x(epoch), TOP, str(epoch)))
    lines.append(
        f'<clipPath id="c{index}"><rect x="{left}" y="{TOP - 2}" width="{WIDTH}" '
        f'height="{HEIGHT + 4}"/></clipPath>'
    )
    for number, epochs, values in curves:
        points = " ".join(
            f"{x(e):.1f},{min(y(v), 9e4):.1f}" for e, v in zip(epochs, values, strict=True)
        )
        kind = f"run m{number % len(LIGHT)}"
        lines.append(f'<polyline class="{kind}" clip-path="url(#c{index})" points="{points}"/>')
    lines.append(below(left, TOP, "epoch"))
    return lines


def limits(curves: list[Curve]) -> tuple[float, float, float]:
    """The y axis: its ends, and the distance of its ticks."""
    shown = [value for _, _, values in curves for value in values[int(SETTLED * len(values)) :]]
    low, high = min(shown), max(shown)
    span = max(high - low, 1e-3)
    step = next(step for step in round_steps(-4) if span <= TICKS * step)
    low = step * (low // step)
    while high > low + step * round((high - low) / step):
        high += step / 2
    return low, low + step * max(1, round((high - low) / step)), step
