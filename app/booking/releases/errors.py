"""Refusals of releases and pools."""

from app.core.problems import Problem


class ReleaseFrozen(Problem):
    code = "release_frozen"
    status = 409
    title_en = "This release is published, so this can no longer be changed"
    title_zh = "该场放号已发布，此项不能再修改"
    advice_en = "Before the opening only title, opens_at and closes_at can change; from then on nothing but capacities."


class ReleaseNotPublishable(Problem):
    code = "release_not_publishable"
    status = 409
    title_en = "This release has closed or been cancelled, so it cannot be published"
    title_zh = "该场放号已截止或已取消，不能发布"
    advice_en = "Move closes_at of the draft into the future, or make a new release."


class CapacityBelowHeld(Problem):
    code = "capacity_below_held"
    status = 409
    title_en = "More places are held than the new capacity has"
    title_zh = "新的名额数少于已被占用的名额"
    advice_en = "Show `held`: it is the lowest capacity possible now."
