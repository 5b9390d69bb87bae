"""Shows the results: a table in the terminal, and one page with charts that needs nothing else."""

from collections.abc import Sequence
from html import escape
from math import log10
from pathlib import Path
from typing import Final

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from loadtest import charts
from loadtest.bench.results import Picture, Results, Row
from loadtest.bench.stage import Spent
from loadtest.charts import Series
from loadtest.report import STYLE, write_atomically

_HUNDRED: Final = 100
_WHAT_COLUMNS_MIN: Final = 24
_COLUMNS_MIN: Final = 132
_ENGINES: Final = ("Server", "Redis", "PostgreSQL")
_TABLE_HEAD: Final = (
    '<section><h2>Targets</h2><table><tr><th>Row</th><th>What, and beside what</th><th class="number">Figure</th>'
    '<th class="number">Reference</th><th class="number">Ratio (min-max)</th><th class="number">Target</th>'
    "<th>Met</th></tr>"
)


def print_table(rows: Sequence[Row], console: Console) -> None:
    """Print one line a row: figure, reference, ratio, target, met or not, and what a claim cost; then the notes."""
    table = Table(title="Clocktower bench", title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("row", no_wrap=True)
    table.add_column("what ÷ beside what", ratio=1, min_width=_WHAT_COLUMNS_MIN)
    for heading in ("figure\n÷ reference", "ratio\n(min-max)", "target"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("met", no_wrap=True)
    table.add_column("CPU µs each: server\n+ Redis + PostgreSQL", justify="right", no_wrap=True)
    for row in rows:
        beside = f"\n[dim]÷ {row.reference_what}[/dim]" if row.reference_what else ""
        table.add_row(
            row.id,
            f"{row.what}{beside}",
            _value(row, between="\n")
            if row.reference is None
            else f"{_value(row)}\n÷ {_in_unit(row.reference.median, row.unit)}",
            _ratio(row, between="\n"),
            row.aim,
            _met(row, "[green]yes[/green]", "[bold red]NO[/bold red]"),
            "\n".join(_cost(spent) for spent in (row.cpu_us, row.reference_cpu_us) if spent is not None),
        )
    # In a log, and on a screen that is too small, a long line is easier to read than a cell of three letters.
    console.width = max(console.width, _COLUMNS_MIN)
    console.print(table)
    for note, ids in _notes(rows).items():
        console.print(f"{', '.join(ids)}: {note}", markup=False, highlight=False, style="dim")


def _notes(rows: Sequence[Row]) -> dict[str, list[str]]:
    """Return what the reader of a figure has to know, each with the rows that it is about."""
    notes: dict[str, list[str]] = {}
    for row in rows:
        if row.note:
            notes.setdefault(row.note, []).append(row.id)
    return notes


def figure(value: float) -> str:
    """Return a figure with three digits that count."""
    if abs(value) >= _HUNDRED:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def _in_unit(value: float, unit: str) -> str:
    return f"{figure(value)}{unit}" if unit.startswith("/") else f"{figure(value)} {unit}"


def _value(row: Row, *, between: str = " ") -> str:
    middle = _in_unit(row.value.median, row.unit)
    is_one = row.value.low == row.value.high
    return middle if row.ratio or is_one else f"{middle}{between}({figure(row.value.low)}-{figure(row.value.high)})"


def _ratio(row: Row, *, between: str = " ") -> str:
    if row.ratio is None:
        return ""
    return f"{figure(row.ratio.median)}{between}({figure(row.ratio.low)}-{figure(row.ratio.high)})"


def _met(row: Row, yes: str, no: str) -> str:
    if row.met is None:
        return "reported"
    return yes if row.met else no


def _cost(spent: Spent) -> str:
    # What is less than a hundredth of the whole is nothing.
    parts = " + ".join(
        figure(part) if part >= spent.total / _HUNDRED else "0" for part in (spent.server, spent.redis, spent.postgres)
    )
    return f"{figure(spent.total)} = {parts}"


def write_page(results: Results, path: Path) -> None:
    """Write the page, whole or not at all."""
    write_atomically(path, html_page(results))


def html_page(results: Results) -> str:
    """Return the page."""
    tone, colour = ("broken", "bad") if results.trouble or results.missed else ("holds", "good")
    machine = results.machine
    where = (
        f"{machine.processor}, {machine.cores} cores, {machine.memory_gib:g} GiB · {machine.system} · "
        f"Python {machine.python}"
    )
    quick = " · quick: fewer and shorter rounds" if results.quick else ""
    parts = "" if results.is_whole else f" · measured: {', '.join(results.finished) or 'nothing to the end'}"
    trouble = f'<pre class="bad">{escape(results.trouble)}</pre>' if results.trouble else ""
    return "".join(
        (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width,initial-scale=1"><title>Clocktower bench</title>',
            f"<style>{STYLE}main{{max-width:1180px}}</style></head><body><main>",
            f'<header class="{tone}"><h1 class="{colour}">{escape(results.verdict)}</h1>',
            f'<div class="soft">{escape(results.started_at)} · {escape(where)}{quick}{parts}</div>{trouble}</header>',
            _table(results.rows),
            _ratios(results.rows),
            _costs(results.rows),
            *(_picture(picture) for picture in results.pictures),
            "</main></body></html>\n",
        )
    )


def _table(rows: Sequence[Row]) -> str:
    if not rows:
        return ""
    lines = [_TABLE_HEAD]
    for row in rows:
        met = _met(row, '<span class="good">yes</span>', '<span class="bad">no</span>')
        beside = f'<div class="soft">÷ {escape(row.reference_what)}</div>' if row.reference_what else ""
        note = f'<div class="soft">{escape(row.note)}</div>' if row.note else ""
        reference = "" if row.reference is None else escape(_in_unit(row.reference.median, row.unit))
        lines.append(
            f"<tr><td>{escape(row.id)}</td><td>{escape(row.what)}{beside}{note}</td>"
            f'<td class="number">{escape(_value(row))}</td><td class="number">{reference}</td>'
            f'<td class="number">{_ratio(row)}</td>'
            f'<td class="number">{escape(row.aim)}</td>'
            f"<td>{met}</td></tr>"
        )
    return "".join((*lines, "</table></section>"))


def _ratios(rows: Sequence[Row]) -> str:
    """Draw how far each ratio is past its target: a hundred is just there."""
    named = [
        (row.id, round(_HUNDRED * (row.ratio.median / row.target.bound)))
        for row in rows
        if row.ratio is not None and row.target is not None and row.target.at_least
    ]
    if not named:
        return ""
    chart = charts.bars("ratio in per cent of its target", named, x_label="100 is the target")
    return f"<section><h2>Ratios, in per cent of what is aimed at</h2>{chart}</section>"


def _costs(rows: Sequence[Row]) -> str:
    """List what each request cost, and whom; a bar is as long as its share of the dearer one of its row."""
    lines: list[str] = []
    for row in rows:
        sides = [(row.what, row.cpu_us), (f"÷ {row.reference_what}", row.reference_cpu_us)]
        spent = [(what, cost) for what, cost in sides if cost is not None]
        dearest = max((cost.total for _, cost in spent), default=0.0)
        for number, (what, cost) in enumerate(spent):
            shares = (cost.server, cost.redis, cost.postgres)
            figures = "".join(f'<td class="number">{figure(part)}</td>' for part in (*shares, cost.total))
            tone = ' class="soft"' if number else ""
            bar = charts.stack(f"{what}: {figure(cost.total)} µs", shares, of=dearest)
            lines.append(
                f"<tr{tone}><td>{'' if number else escape(row.id)}</td><td>{escape(what)}</td>{figures}"
                f'<td style="width:26%">{bar}</td></tr>'
            )
    if not lines:
        return ""
    heads = "".join(f'<th class="number">{head}</th>' for head in (*_ENGINES, "Together"))
    return (
        "<section><h2>Processor time each takes, µs</h2><table><tr><th>Row</th><th>What, and beside what</th>"
        f"{heads}<th>Of the dearer one in its row</th></tr>{''.join(lines)}</table>{charts.legend(_ENGINES)}</section>"
    )


def _picture(picture: Picture) -> str:
    series = [
        Series(curve.name, tuple((log10(x) if picture.log_x else x, y) for x, y in curve.points))
        for curve in picture.curves
    ]
    x_label = f"{picture.x_label}, as a power of ten" if picture.log_x else picture.x_label
    remark = f'<div class="soft">{escape(picture.remark)}</div>' if picture.remark else ""
    return (
        f"<section><h2>{escape(picture.title)}</h2>{remark}"
        f"{charts.lines(picture.title, series, x_label=x_label)}{charts.legend([line.name for line in series])}"
        f'<div class="soft">{escape(picture.y_label)}</div></section>'
    )
