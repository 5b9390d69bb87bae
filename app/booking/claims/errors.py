"""Refusals about decided claims."""

from app.core.problems import Problem


class TooLateToCancel(Problem):
    code = "too_late_to_cancel"
    status = 409
    title_en = "It is too late to give this place back"
    title_zh = "已超过可取消的时间"
    advice_en = "Show the deadline in `deadline`; the station's staff can still be called."
