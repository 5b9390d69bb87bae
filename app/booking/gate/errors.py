"""Why a claim is refused: each refusal's code, status and words."""

from typing import Final, Literal

from app.core.problems import Problem, ValidationFailed


class PassInvalid(Problem):
    code = "pass_invalid"
    status = 403
    title_en = "This pass is not valid for this claim"
    title_zh = "报名凭证无效"
    advice_en = "Fetch a pass for this release and these people, and send the claim again with it."


class PassExpired(Problem):
    code = "pass_expired"
    status = 403
    title_en = "This pass has expired"
    title_zh = "报名凭证已过期"
    advice_en = "Fetch a new pass, and send the same claim again with it."


class NotEligible(Problem):
    code = "not_eligible"
    status = 403
    title_en = "One of these people may not claim one of these pools"
    title_zh = "有人不符合所选场次的报名条件"
    advice_en = "Offer only the pools that the pass lists for each person."


class TooManyPeople(ValidationFailed):
    code = "too_many_people"
    title_en = "More people than one claim may name"
    title_zh = "一次报名的人数过多"
    advice_en = "Split them over several claims, each with its own id."


class DuplicatePerson(ValidationFailed):
    code = "duplicate_person"
    title_en = "The same person is named twice"
    title_zh = "同一人员重复出现"
    advice_en = "Name each person once."


class DuplicateChoice(ValidationFailed):
    code = "duplicate_choice"
    title_en = "The same pool is named twice"
    title_zh = "同一场次重复出现"
    advice_en = "Name each pool once, in order of preference."


class UnknownPool(ValidationFailed):
    code = "unknown_pool"
    title_en = "One of these pools does not belong to this release"
    title_zh = "所选场次不属于本次放号"
    advice_en = "Read the release again: `errors` names the choice."


class Full(Problem):
    code = "full"
    status = 409
    title_en = "No place is free at this moment"
    title_zh = "当前没有空余名额"
    retryable = True
    advice_en = "Not final: claims are still being settled, so a place may come back. Ask again after retry_after_ms."


class SoldOut(Problem):
    code = "sold_out"
    status = 409
    title_en = "Every place is taken"
    title_zh = "名额已全部报满"
    advice_en = "Final for this claim. Offer other pools, or the waiting list, under a new claim id."


class AlreadyBooked(Problem):
    code = "already_booked"
    status = 409
    title_en = "This person is booked here already"
    title_zh = "该人员已报名此场次"
    advice_en = (
        "Show the booking in `booking`. Another guardian may have made the claim: then this account can neither read "
        "it nor give it back."
    )


class Undecided(Problem):
    code = "undecided"
    status = 409
    title_en = "Another claim for these people or this account is being decided"
    title_zh = "您的另一个报名正在处理中，请稍候"
    retryable = True
    advice_en = "Not final: wait retry_after_ms, then send the same claim with the same id."


class LimitReached(Problem):
    code = "limit_reached"
    status = 409
    title_en = "No more places may be claimed in this release"
    title_zh = "已达到本次放号的报名上限"
    advice_en = "`limit` says whose limit (person or account) and how many; giving a place back makes room."


class TimeClash(Problem):
    code = "time_clash"
    status = 409
    title_en = "One of these people is booked elsewhere at that time"
    title_zh = "该时段已有其他报名，时间冲突"
    advice_en = "Final for this claim id. Choose another pool under a new claim id, or give the other booking back."


class ClaimVoid(Problem):
    code = "claim_void"
    status = 409
    title_en = "This claim id was closed without a booking"
    title_zh = "该报名请求已作废"
    retryable = True
    advice_en = "Nothing was booked under this id, and nothing will be. Send the claim again under a new id."


class NotOpenYet(Problem):
    code = "not_open_yet"
    status = 425
    title_en = "This release is not open yet"
    title_zh = "尚未开放报名"
    retryable = True
    advice_en = "Wait retry_after_ms (or until opens_at by server_time), then send the same claim again."


class Closed(Problem):
    code = "closed"
    status = 410
    title_en = "This release has closed"
    title_zh = "报名已结束"
    advice_en = "Final."


class Busy(Problem):
    code = "busy"
    status = 503
    title_en = "More claims are waiting than can be answered in time"
    title_zh = "当前排队人数过多，请稍后再试"
    retryable = True
    advice_en = "Wait for Retry-After, then send the same claim with the same id."


class Rebuilding(Problem):
    code = "rebuilding"
    status = 503
    title_en = "This release is being put in order; nothing that was confirmed is lost"
    title_zh = "名额数据正在恢复，已确认的报名不会丢失"
    retryable = True
    advice_en = "Wait for Retry-After, then send the same claim with the same id."


class GateUnreachable(Problem):
    code = "gate_unreachable"
    status = 503
    title_en = "The service that counts places cannot be reached"
    title_zh = "名额服务暂时不可用"
    retryable = True
    advice_en = "Whether this claim was counted is not known. Send the same claim with the same id."


# In the order in which they stand in the documents.
CLAIM_PROBLEMS: tuple[type[Problem], ...] = (
    PassInvalid,
    PassExpired,
    NotEligible,
    TooManyPeople,
    DuplicatePerson,
    DuplicateChoice,
    UnknownPool,
    NotOpenYet,
    Closed,
    Full,
    SoldOut,
    AlreadyBooked,
    Undecided,
    LimitReached,
    TimeClash,
    ClaimVoid,
    Busy,
    Rebuilding,
    GateUnreachable,
)


# Why a process uses a state no longer: there is none (any more), it was built on another server, PostgreSQL or Redis
# has gone on to another epoch, or the two contradict each other.
FenceCause = Literal["no_state", "other_server", "stale_epoch", "contradiction"]
# Of several servers, the one that was asked has the release no longer.
HELD_ELSEWHERE: Final = "another server holds the release"


class GateError(Exception):
    """The gate's own trouble, never shown to a phone as it is."""

    @property
    def cause(self) -> FenceCause:
        """Return why the state cannot be used."""
        return "contradiction"


class Contradiction(GateError):  # noqa: N818 - the protocol's word
    """Redis and PostgreSQL say different things: the state must be rebuilt before it is used again."""


def contradiction_in(error: Exception) -> Contradiction | None:
    """Return the contradiction that a script stopped at, or None where the error is another."""
    return Contradiction(str(error)) if "CONTRADICTION" in str(error) else None


class NotInForce(GateError):  # noqa: N818 - the protocol's word
    """No usable state in Redis: none at all, built on another server, or of another epoch."""

    @property
    def cause(self) -> FenceCause:
        """Return why the state cannot be used. The scripts say it in a letter."""
        said = str(self)
        if said == "C":
            return "no_state"
        return "other_server" if said in {"I", HELD_ELSEWHERE} else "stale_epoch"
