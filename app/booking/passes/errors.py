"""Refusals of the passes."""

from app.core.problems import Problem


class UnknownPerson(Problem):
    code = "unknown_person"
    status = 404
    title_en = "One of these people is not registered with this account"
    title_zh = "有人员不属于当前账号"
    advice_en = "Read GET /v1/me/people again: `errors` names the ids that are not the account's."
