"""Refusals of stations, and which named constraint each answers."""

from typing import Final

from sqlalchemy.exc import IntegrityError

from app.core.problems import FieldError, Problem, ValidationFailed
from app.core.web.failures import constraint_of


class StationNameTaken(Problem):
    code = "station_name_taken"
    status = 409
    title_en = "Another station has this name"
    title_zh = "已有同名站点"
    advice_en = "Ask for another name: people tell stations apart by it."


class UnitNameTaken(Problem):
    code = "unit_name_taken"
    status = 409
    title_en = "Another unit has this name"
    title_zh = "已有同名村居"
    advice_en = "Ask for another name."


_UNKNOWN_PARENT: Final = FieldError("parent_id", "unknown_station")
_UNKNOWN_UNIT: Final = FieldError("unit_id", "unknown_unit")
_PARENT_IS_A_POINT: Final = FieldError("parent_id", "not_a_service_station")


def unknown_parent() -> Problem:
    """Return the refusal of a parent that does not exist."""
    return ValidationFailed(errors=[_UNKNOWN_PARENT])


def parent_is_a_point() -> Problem:
    """Return the refusal of a parent that is a service point itself."""
    return ValidationFailed(errors=[_PARENT_IS_A_POINT])


def refusal_of(error: IntegrityError) -> Exception:
    """Return what the violated constraint means to a caller, or the error itself where it is a defect of ours."""
    match constraint_of(error):
        case "uq_station_name":
            return StationNameTaken()
        case "uq_unit_name":
            return UnitNameTaken()
        case "fk_station_parent_id":
            return unknown_parent()
        case "fk_station_unit_id":
            return ValidationFailed(errors=[_UNKNOWN_UNIT])
        case _:
            return error
