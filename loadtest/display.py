"""Shows a rehearsal while it runs: a live panel at a terminal, one line a second anywhere else."""

import time
from types import TracebackType
from typing import Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from loadtest.progress import Phase, Progress

_LINE_EVERY_SECONDS: Final = 1.0
_FRAMES_PER_SECOND: Final = 5
_BAR_WIDTH: Final = 34

_PHASES: Final[dict[Phase, str]] = {
    Phase.SIGNING_IN: "登录、登记孩子 · signing in, registering children",
    Phase.PASSES: "领取通行证 · fetching passes",
    Phase.CONNECTING: "接通电话 · connecting phones",
    Phase.COUNTDOWN: "等待开抢 · waiting for the second",
    Phase.RUSH: "开抢 · the rush",
    Phase.SETTLING: "逐一核对 · asking again about every promise",
    Phase.CHECKING: "与数据库对账 · checking against PostgreSQL",
    Phase.DONE: "完成 · done",
}


class Display:
    """A progress sink with a face. A context manager; the last state stays on the screen."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console()
        self._live: Live | None = None
        self._line_due_at = 0.0
        self._phase: Phase | None = None

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            # Drawn when told, not by a thread of its own: the crowd needs the processor more.
            self._live = Live(console=self._console, auto_refresh=False, transient=False)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, progress: Progress) -> None:
        """Show this state, unless one was shown a moment ago."""
        now = time.monotonic()
        phase_changed = progress.phase is not self._phase
        if now < self._line_due_at and not phase_changed:
            return
        self._phase = progress.phase
        if self._live is not None:
            self._line_due_at = now + 1.0 / _FRAMES_PER_SECOND
            self._live.update(_panel(progress), refresh=True)
        else:
            self._line_due_at = now + _LINE_EVERY_SECONDS
            self._console.print(_line(progress), highlight=False, soft_wrap=True)


def _countdown(progress: Progress) -> str:
    if progress.opens_in_seconds is None:
        return ""
    if progress.opens_in_seconds >= 0:
        return f"T-{progress.opens_in_seconds:.1f}s"
    return f"T+{-progress.opens_in_seconds:.1f}s"


def _line(progress: Progress) -> str:
    parts = [f"[{progress.elapsed_seconds:6.1f}s] {_PHASES[progress.phase]}"]
    if countdown := _countdown(progress):
        parts.append(countdown)
    if progress.total:
        parts.append(f"{progress.done}/{progress.total}")
    if progress.phase in {Phase.RUSH, Phase.SETTLING}:
        left = sum(pool.left for pool in progress.pools)
        parts.append(f"余 left {left}, 已订 held {progress.held}/{progress.places}, 答复 answers {progress.answers}")
    # Rich reads square brackets as markup.
    return "  ".join(parts).replace("[", r"\[", 1)


def _panel(progress: Progress) -> Panel:
    head = Table.grid(padding=(0, 3))
    head.add_row(
        Text(_PHASES[progress.phase], style="bold"),
        Text(_countdown(progress), style="bold magenta"),
        Text(f"{progress.done}/{progress.total}" if progress.total else "", style="cyan"),
        Text(f"{progress.elapsed_seconds:.0f} s", style="dim"),
    )
    pools = Table.grid(padding=(0, 2))
    for pool in progress.pools:
        taken = pool.capacity - pool.left
        tone = "green" if pool.left else "red"
        pools.add_row(
            Text(pool.title),
            ProgressBar(total=max(1, pool.capacity), completed=taken, width=_BAR_WIDTH),
            Text(f"余 {pool.left:>3} / {pool.capacity}", style=tone),
        )
    refused = "  ".join(
        f"{code} {count}" for code, count in sorted(progress.refusals.items(), key=lambda pair: -pair[1])[:6]
    )
    tail = Text(
        f"已订 held {progress.held}/{progress.places}   候补 waiting {progress.waiting}   "
        f"答复 answers {progress.answers}\n{refused}",
        style="dim",
    )
    return Panel(Group(head, pools, tail) if progress.pools else head, title="Clocktower 演练 rehearsal", expand=False)
