#!/usr/bin/env python3
"""Draws groups.svg from groups.json: two log-log plots side by side. Standard library only. Usage: ./plot.py"""
import json
import math
import pathlib

HERE = pathlib.Path(__file__).parent
COLOURS = ["#c0392b", "#2c6fbb", "#3d8b40", "#8e5ea2"]
WIDTH, HEIGHT, LEFT, TOP, PLOT_W, PLOT_H, GAP = 980, 360, 60, 60, 400, 240, 80
MOST = 10_000


def plot(out, name, title, x, lines, at):
    def px(value):
        return at + PLOT_W * math.log10(value) / math.log10(x[-1])

    def py(value):
        return TOP + PLOT_H * (1 - (math.log10(value) + 1) / (math.log10(MOST) + 1))

    out.append(f'<text x="{at}" y="{TOP - 10}" font-weight="bold">{title}</text>')
    for decade in range(-1, 5):
        y = py(10**decade)
        out.append(f'<line x1="{at}" y1="{y:.1f}" x2="{at + PLOT_W}" y2="{y:.1f}" stroke="#ddd"/>')
        out.append(f'<text x="{at - 6}" y="{y + 4:.1f}" text-anchor="end">{10**decade:g}</text>')
    for value in x:
        out.append(f'<text x="{px(value):.1f}" y="{TOP + PLOT_H + 18}" text-anchor="middle">{value}</text>')
    for colour, (who, values) in zip(COLOURS, lines[name].items()):
        points = [(px(a), py(b)) for a, b in zip(x, values) if b is not None]
        path = " ".join(f"{a:.1f},{b:.1f}" for a, b in points)
        out.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        out += [f'<circle cx="{a:.1f}" cy="{b:.1f}" r="3" fill="{colour}"/>' for a, b in points]


def main():
    data = json.loads((HERE / "groups.json").read_text())
    out = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="24" font-size="14">{data["title"]}</text>',
    ]
    plot(out, "takeover", "until the last group is taken over, ms", data["x"], data, LEFT)
    plot(out, "join", "until all groups are joined, ms", data["x"], data, LEFT + PLOT_W + GAP)
    for n, (colour, who) in enumerate(zip(COLOURS, data["takeover"])):
        x = LEFT + 150 * n
        out.append(f'<rect x="{x}" y="{HEIGHT - 22}" width="12" height="12" fill="{colour}"/>')
        out.append(f'<text x="{x + 18}" y="{HEIGHT - 12}">{who}</text>')
    out.append("</svg>")
    (HERE / "groups.svg").write_text("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
