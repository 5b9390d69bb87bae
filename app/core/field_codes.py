"""What may be wrong with a field: every code that stands in a problem's `errors`, with its sentence in both languages.

The table of error codes prints this list, and a problem takes its sentences from here, so no code is told without one.
"""

from collections.abc import Mapping
from typing import Final, Literal, NamedTuple

Language = Literal["zh-CN", "en"]


class Sentence(NamedTuple):
    """What is said of a code; `{limit}` stands for the bound that was passed."""

    en: str
    zh: str

    def told(self, language: Language, limit: object) -> str:
        """Return the sentence in this language, with this limit in it."""
        return (self.zh if language == "zh-CN" else self.en).format(limit=limit)


SENTENCES: Final[Mapping[str, Sentence]] = {
    # The body as a whole.
    "syntax": Sentence("The body is not JSON.", "请求体不是合法的 JSON。"),
    "not_utf_8": Sentence("The body is not UTF-8.", "请求体不是 UTF-8。"),
    "too_deep": Sentence("Nested deeper than {limit}.", "嵌套超过 {limit} 层。"),
    "duplicate_name": Sentence("An object has the same name twice.", "对象中有重复的字段名。"),
    "number_too_long": Sentence("A number has too many digits.", "数字位数过多。"),
    "not_finite": Sentence("The number is not finite.", "数值必须是有限数。"),
    "bad_text": Sentence("The text is not valid Unicode.", "文本不是合法的 Unicode。"),
    # Any field.
    "missing": Sentence("This field is required.", "缺少此字段。"),
    "unknown_field": Sentence("There is no such field.", "没有此字段。"),
    "wrong_type": Sentence("The value has the wrong JSON type.", "值的类型不正确。"),
    "bad_format": Sentence("The value is not written as it must be.", "格式不正确。"),
    "not_allowed": Sentence("The value is not one of those allowed.", "不允许使用该值。"),
    "duplicate": Sentence("The same one is named twice.", "重复出现。"),
    # Texts, lists and numbers.
    "nul_character": Sentence("The text contains a NUL character.", "文本包含空字符（NUL）。"),
    "control_character": Sentence("The text contains a control character.", "文本包含控制字符。"),
    "blank": Sentence("The text is blank.", "文本不能为空白。"),
    "too_long": Sentence("Longer than {limit}.", "长度超过上限 {limit}。"),
    "too_short": Sentence("Shorter than {limit}.", "长度低于下限 {limit}。"),
    "too_large": Sentence("Larger than {limit} allows.", "数值超过上限 {limit}。"),
    "too_small": Sentence("Smaller than {limit} allows.", "数值低于下限 {limit}。"),
    # Times.
    "no_time_zone": Sentence(
        "The time has no offset; write 2026-07-01T09:00:00+08:00.", "时间缺少时区，应写作 2026-07-01T09:00:00+08:00。"
    ),
    "in_the_future": Sentence("The time lies in the future.", "不能是将来的时间。"),
    "in_the_past": Sentence("The time lies in the past.", "不能是过去的时间。"),
    "not_after_opens_at": Sentence("It must be after opens_at.", "须晚于 opens_at。"),
    "not_after_starts_at": Sentence("It must be after starts_at.", "须晚于 starts_at。"),
    "after_last_session": Sentence(
        "It must not be after the start of the last session.", "不得晚于最后一场的开始时间。"
    ),
    "not_before_sessions": Sentence("It must be before every session.", "须早于每一场。"),
    # One feature's own.
    "bad_cursor": Sentence("The cursor is not one that a list gave out.", "翻页游标无效。"),
    "below_age_min": Sentence("It must not be below age_min.", "不得小于 age_min。"),
    "half_a_position": Sentence("Give longitude_deg and latitude_deg, or neither.", "经度和纬度须同时填写或同时留空。"),
    "not_a_service_station": Sentence("A service point belongs to a service station.", "服务点只能隶属于服务站。"),
    "one_account": Sentence("Give account_id or openid, and not both.", "account_id 与 openid 须且只能填写一个。"),
    "parent_missing": Sentence("A service point belongs to a service station.", "服务点须隶属于服务站。"),
    "parent_not_allowed": Sentence("A service station belongs to no other station.", "服务站不隶属于其他站点。"),
    "too_many_places": Sentence("More than {limit} places in all.", "名额总数超过上限 {limit}。"),
    "unknown_activity": Sentence("The station has no such activity.", "该站点没有此活动。"),
    "unknown_person": Sentence("Not registered with this account.", "该人员不属于当前账号。"),
    "unknown_pool": Sentence("Not a pool of this release.", "不是本次放号的场次。"),
    "unknown_station": Sentence("There is no such station.", "没有这个站点。"),
    "unknown_unit": Sentence("There is no such unit.", "没有这个村居。"),
}
_OTHERWISE: Final = Sentence("The value is not allowed here.", "值不符合要求。")


def sentence_of(code: str) -> Sentence:
    """Return what is said of a code; something true of any, where it has no sentence of its own."""
    return SENTENCES.get(code, _OTHERWISE)
