"""Says the verdict three ways: as JSON, as one HTML page that needs nothing else, and in the terminal."""

import json
import os
import tempfile
from html import escape
from pathlib import Path
from typing import Final

from rich.console import Console, Group
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from loadtest import charts
from loadtest.charts import Series
from loadtest.measures import Summary
from loadtest.verdict import Verdict

STYLE: Final = """
:root{color-scheme:light dark;--ink:#1c2430;--soft:#5d6b7c;--line:#dfe5ec;--paper:#fff;--ground:#f4f6f9;
--good:#12805c;--bad:#b3261e;--accent:#2f6fb5}
@media(prefers-color-scheme:dark){:root{--ink:#e6ebf2;--soft:#9aa8b8;--line:#2c3643;--paper:#161c24;--ground:#0e1319;
--good:#4cc38a;--bad:#ff7b72;--accent:#6aa5e6}}
*{box-sizing:border-box}body{margin:0;background:var(--ground);color:var(--ink);
font:15px/1.55 system-ui,-apple-system,"PingFang SC","Microsoft YaHei","Noto Sans CJK SC",sans-serif}
main{max-width:960px;margin:0 auto;padding:28px 20px 60px}h1{font-size:24px;margin:0}h2{font-size:17px;margin:0 0 10px}
section,header{background:var(--paper);border:1px solid var(--line);border-radius:12px;padding:20px;margin-bottom:18px}
header.holds{border-left:8px solid var(--good)}header.broken{border-left:8px solid var(--bad)}
.soft{color:var(--soft)}.good{color:var(--good);font-weight:600}.bad{color:var(--bad);font-weight:600}
.figures{display:grid;grid-template-columns:repeat(auto-fit,minmax(132px,1fr));gap:14px;margin-top:18px}
.figure b{display:block;font-size:26px;font-variant-numeric:tabular-nums;line-height:1.2}
.figure span{color:var(--soft);font-size:13px}table{border-collapse:collapse;width:100%}
th,td{text-align:left;padding:6px 10px 6px 0;border-bottom:1px solid var(--line);vertical-align:top}
td.number,th.number{text-align:right;font-variant-numeric:tabular-nums}td.number{white-space:nowrap}th{color:var(--soft);font-weight:500;font-size:13px}
svg{width:100%;height:auto;display:block}svg text{fill:var(--soft);font-size:11px}svg .count{fill:var(--ink)}
svg .grid{stroke:var(--line)}svg .opening{stroke:var(--bad);stroke-dasharray:4 3}svg .line{fill:none;stroke-width:1.8}
svg .bar{fill:var(--accent)}code{font-family:ui-monospace,Consolas,monospace;font-size:13px}
.legend{display:flex;flex-wrap:wrap;gap:4px 14px;font-size:12px;color:var(--soft);margin-top:8px}
.legend i{display:inline-block;width:10px;height:10px;border-radius:3px;margin-right:5px}
"""

_PLAIN: Final[dict[str, str]] = {
    "one_holder_a_place": "一个名额至多一个持有人 · at most one holder a place",
    "capacity_holds": "不超过容量 · never more than the capacity",
    "limits_hold": "每人、每户限额 · limits per person and per account",
    "nobody_in_two_places_at_once": "同一时间不在两处 · nobody in two places at once",
    "every_yes_is_kept": "答应了就算数 · every yes is kept",
    "promised_is_what_is_held": "所答应的与数据库一致 · what was promised is what PostgreSQL holds",
    "no_yes_after_a_final_no": "终答“没有”之后不再给 · no yes after a final no",
    "same_claim_same_answer": "同一请求同一答复 · the same claim gets the same answer",
    "gate_and_postgres_agree": "闸口与数据库相符 · gate and PostgreSQL agree at rest",
    "nothing_leaks": "有人要就没有空名额 · no place stays free while wanted",
    "no_sold_out_while_a_place_is_free": "有余量不说“抢完” · no final sold-out while a place is free",
    "waiting_order_kept": "候补不插队 · waiting order is kept",
    "together_is_all_or_nothing": "一起要么全有要么全无 · together is all or nothing",
    "answers_fit_the_wish": "所得即所求 · answers fit the wish",
    "nobody_before_the_opening": "开抢前无人抢到 · nobody gets in before the opening",
    "everybody_was_answered": "人人有答复 · everybody was answered",
    "no_server_error": "没有服务器错误 · no server error",
}


def write_atomically(path: Path, text: str) -> None:
    """Write a file whole or not at all: a reader sees the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.exists() and not path.is_file():
        # A pipe, a terminal, the null device: to be written to, and not to be replaced.
        path.write_text(text, encoding="utf-8")
        return
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(beside).chmod(0o644)
        Path(beside).replace(path)
    except BaseException:
        Path(beside).unlink(missing_ok=True)
        raise


def write_json(verdict: Verdict, path: Path) -> None:
    """Write the verdict as one JSON document."""
    write_atomically(path, json.dumps(verdict.as_document(), ensure_ascii=False, indent=2) + "\n")


def write_html(verdict: Verdict, path: Path) -> None:
    """Write the verdict as one page."""
    write_atomically(path, html_page(verdict))


def _seconds(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f} s"


def _figure(value: object, label: str, *, bad: bool = False) -> str:
    tone = ' class="bad"' if bad else ""
    return f'<div class="figure"><b{tone}>{escape(str(value))}</b><span>{escape(label)}</span></div>'


def _header(verdict: Verdict) -> str:
    words = "全部守住 · Every promise held" if verdict.holds else "有承诺被打破 · A promise was broken"
    figures = (
        _figure(f"{verdict.confirmed} / {verdict.places}", "已订 / 名额 · confirmed / places"),
        _figure(_seconds(verdict.seconds_to_last_place), "最后一个名额 · last place taken"),
        _figure(verdict.parents, "家长 · parents"),
        _figure(f"{verdict.parents_answered['p99_ms']:.0f} ms", "家长等到答复 p99 · parents answered p99"),
        _figure(verdict.overbooked, "超订 · overbooked", bad=verdict.overbooked > 0),
        _figure(verdict.lost, "丢失 · lost", bad=verdict.lost > 0),
        _figure(verdict.leaked, "漏放 · leaked", bad=verdict.leaked > 0),
        _figure(verdict.waitlisted, "候补 · waitlisted"),
        _figure(verdict.given_back, "退还 · given back"),
        _figure(_seconds(verdict.seconds_to_refill), "退还后补满 · refilled after"),
    )
    tone = "holds" if verdict.holds else "broken"
    colour = "good" if verdict.holds else "bad"
    return (
        f'<header class="{tone}"><h1 class="{colour}">{escape(words)}</h1>'
        f'<div class="soft">Clocktower · {escape(verdict.started_at)} · seed {verdict.seed} · '
        f"{escape(verdict.base_url)} · {escape(verdict.checked_against)}</div>"
        f'<div class="figures">{"".join(figures)}</div></header>'
    )


def _fall(verdict: Verdict) -> str:
    """Draw the places left in each pool while they first went, by the server's own times."""
    last_ms = max((moments[-1] for moments in verdict.taken_at_ms if moments), default=0.0)
    until_ms = min(last_ms, (verdict.seconds_to_last_place or last_ms / 1000.0) * 1000.0) * 1.05 + 20
    series: list[Series] = []
    for pool, moments in zip(verdict.pools, verdict.taken_at_ms, strict=True):
        places = pool["left_before"]
        early = [moment for moment in moments if moment <= until_ms][:places]
        steps = [(0.0, float(places)), *((moment, float(places - n)) for n, moment in enumerate(early, 1))]
        steps.append((until_ms, float(places - len(early))))
        series.append(Series(pool["title"], tuple(steps), is_stepped=True))
    chart = charts.lines("places left in each pool", series, x_label="开抢后毫秒 · milliseconds after the opening")
    return (
        "<section><h2>各池余量 · Places left, pool by pool</h2>"
        f"{chart}{charts.legend([line.name for line in series])}</section>"
    )


def _afterwards(verdict: Verdict) -> str:
    """Draw what came back after the last place had gone, as the availability endpoint showed it."""
    after_s = verdict.seconds_to_last_place or 0.0
    levels = [level for level in verdict.timeline if level["seconds"] >= after_s]
    series = (
        Series(
            "余量合计 · places left", tuple((level["seconds"], sum(level["left"])) for level in levels), is_stepped=True
        ),
        Series(
            "候补人数 · people waiting",
            tuple((level["seconds"], sum(level["waiting"])) for level in levels),
            is_stepped=True,
        ),
    )
    chart = charts.lines("places left and people waiting", series, x_label="开抢后秒 · seconds after the opening")
    return (
        "<section><h2>退还与补位 · What came back, and who waited</h2>"
        f"{chart}{charts.legend([line.name for line in series])}"
        '<p class="soft">每 250 毫秒查询一次；有人退还时先递补候补，其余重新放出。'
        " Read four times a second; a place given back passes to the first waiter, or is offered again.</p></section>"
    )


def _latencies(verdict: Verdict) -> str:
    last = max((n for n, bucket in enumerate(verdict.latency_histogram) if bucket["count"]), default=0)
    named = [
        (f"{bucket['up_to_ms']:g}" if bucket["up_to_ms"] is not None else "∞", int(bucket["count"] or 0))
        for bucket in verdict.latency_histogram[: last + 1]
    ]
    rows = "".join(
        _latency_row(kind, summary)
        for kind, summary in {
            "全部 · every answer": verdict.answers,
            **verdict.answers_by_kind,
            "家长等到答复 · parents answered": verdict.parents_answered,
            "人群自身迟缓 · lag of the crowd itself": verdict.crowd_lag,
        }.items()
    )
    return (
        "<section><h2>答复耗时 · How long answers took</h2>"
        f"{charts.bars('latency histogram', named, x_label='不超过（毫秒） · milliseconds, at most')}"
        "<table><tr><th>请求 · request</th>"
        + "".join(f'<th class="number">{name}</th>' for name in ("count", "p50 ms", "p95 ms", "p99 ms", "max ms"))
        + f"</tr>{rows}</table></section>"
    )


def _latency_row(kind: str, summary: Summary) -> str:
    cells = "".join(f'<td class="number">{value:g}</td>' for value in summary.values())
    return f"<tr><td>{escape(kind)}</td>{cells}</tr>"


def _refusals(verdict: Verdict) -> str:
    rows = "".join(
        f'<tr><td><code>{escape(code)}</code></td><td class="number">{count}</td></tr>'
        for code, count in verdict.refusals.items()
    )
    return (
        "<section><h2>拒绝 · Refusals by code</h2><table><tr><th>code</th>"
        f'<th class="number">次数 · answers</th></tr>{rows}</table></section>'
    )


def _invariants(verdict: Verdict) -> str:
    rows: list[str] = []
    for name, holds in verdict.invariants.items():
        mark = '<td class="good">✓</td>' if holds else '<td class="bad">✗</td>'
        examples = "".join(
            f'<div class="bad"><code>{escape(sentence)}</code></div>' for sentence in verdict.broken.get(name, [])
        )
        plain = escape(_PLAIN.get(name, name))
        rows.append(f"<tr>{mark}<td>{plain}{examples}</td><td><code>{escape(name)}</code></td></tr>")
    return f"<section><h2>不变式 · Invariants</h2><table>{''.join(rows)}</table></section>"


def html_page(verdict: Verdict) -> str:
    """Build the page: styles and charts inside, nothing fetched, readable without a network."""
    notes = "".join(f"<li>{escape(note)}</li>" for note in verdict.notes)
    body = "".join(
        (
            _header(verdict),
            _invariants(verdict),
            _fall(verdict),
            _afterwards(verdict),
            _latencies(verdict),
            _refusals(verdict),
            f"<section><ul>{notes}</ul></section>" if notes else "",
        )
    )
    return (
        '<!doctype html><html lang="zh-CN"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Clocktower 演练 · rehearsal</title><style>{STYLE}</style></head>"
        f"<body><main>{body}</main></body></html>\n"
    )


def _figures_table(verdict: Verdict) -> Table:
    table = Table.grid(padding=(0, 2))
    zero = "green"

    def row(label: str, value: object, style: str = "bold") -> None:
        table.add_row(Text(label, style="dim"), Text(str(value), style=style))

    row("名额 places", verdict.places)
    row("已订 confirmed", verdict.confirmed)
    row("候补 waitlisted", verdict.waitlisted)
    row("退还 given back", verdict.given_back)
    row("最后一个名额 last place taken after", _seconds(verdict.seconds_to_last_place))
    row("退还后补满 refilled after", _seconds(verdict.seconds_to_refill))
    row("超订 overbooked", verdict.overbooked, "bold red" if verdict.overbooked else zero)
    row("丢失 lost", verdict.lost, "bold red" if verdict.lost else zero)
    row("漏放 leaked", verdict.leaked, "bold red" if verdict.leaked else zero)
    row("核对 checked against", verdict.checked_against, "")
    row("随机种子 seed", verdict.seed, "")
    return table


def _latency_table(verdict: Verdict) -> Table:
    table = Table(title="答复 answers", title_justify="left", header_style="dim")
    table.add_column("")
    for name in ("count", "p50 ms", "p95 ms", "p99 ms", "max ms"):
        table.add_column(name, justify="right")
    rows = {
        "every answer": verdict.answers,
        **verdict.answers_by_kind,
        "parents answered": verdict.parents_answered,
        "crowd's own lag": verdict.crowd_lag,
    }
    for kind, summary in rows.items():
        table.add_row(kind, *(f"{value:g}" for value in summary.values()))
    return table


def print_verdict(verdict: Verdict, console: Console) -> None:
    """Print the verdict for people at a terminal; plain text where it is not one."""
    refusals = Table(title="拒绝 refusals", title_justify="left", header_style="dim")
    refusals.add_column("code")
    refusals.add_column("answers", justify="right")
    for code, count in verdict.refusals.items():
        refusals.add_row(code, str(count))
    checks = Table(title="不变式 invariants", title_justify="left", show_header=False)
    for name, holds in verdict.invariants.items():
        mark = Text("✓", style="green") if holds else Text("✗", style="bold red")
        checks.add_row(mark, Text(_PLAIN.get(name, name)))
        for sentence in verdict.broken.get(name, [])[:5]:
            checks.add_row("", Text(sentence, style="red"))
    headline = "全部守住 · every promise held" if verdict.holds else "有承诺被打破 · a promise was broken"
    parts = Group(_figures_table(verdict), "", _latency_table(verdict), refusals, checks)
    console.print(Panel(parts, title=headline, border_style="green" if verdict.holds else "red", expand=False))
    for note in verdict.notes:
        console.print(Text(note, style="yellow"))
