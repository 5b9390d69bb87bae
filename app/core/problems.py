"""Refusals that a caller can act on: RFC 9457 problem documents with a stable code.

A feature subclasses `Problem` once per refusal in its own `errors.py`; services raise, the edge renders.
Nothing here knows a web framework, so the gate and FastAPI speak with one voice.
"""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import ClassVar, Final

from app.core.field_codes import Language, sentence_of

PROBLEM_MEDIA_TYPE: Final = "application/problem+json"
TYPE_PREFIX: Final = "/docs/errors#"
KEPT_HEADER_BYTES_MAX: Final = 100


@dataclass(frozen=True, slots=True)
class FieldError:
    """One field of a request that was wrong: where, by which rule (see `field_codes`), and the rule's bound if any."""

    field: str
    code: str
    limit: object = None

    def told(self, language: Language) -> dict[str, str]:
        """Return the entry of a problem document."""
        return {
            "field": self.field,
            "code": self.code,
            "message": sentence_of(self.code).told(language, self.limit),
        }


class Problem(Exception):  # noqa: N818 - the field's word for it (RFC 9457) is "problem"
    """A refusal with a stable code. Subclasses set the class attributes; instances carry the particulars.

    `extra` is merged into the document beside the standard members, for the values a phone needs to go on
    (`opens_at`, `held`, …). `headers` go out with the answer (`Allow`, …). A `shared` one is kept and told to many: its
    document is written once, but for the request's id. It is never raised, so nothing of one hearer sticks to it.
    """

    code: ClassVar[str]
    status: ClassVar[int]
    title_en: ClassVar[str]
    title_zh: ClassVar[str]
    retryable: ClassVar[bool] = False
    # What a front-end does on this code; printed in the table of error codes.
    advice_en: ClassVar[str] = ""
    # What goes out with every answer of this kind.
    fixed_headers: ClassVar[Mapping[str, str]] = {}

    def __init__(
        self,
        detail_en: str = "",
        detail_zh: str = "",
        *,
        retry_after_ms: int | None = None,
        errors: Sequence[FieldError] = (),
        extra: Mapping[str, object] | None = None,
        headers: Mapping[str, str] | None = None,
        shared: bool = False,
    ) -> None:
        super().__init__(self.code, detail_en)
        self.detail_en = detail_en
        self.detail_zh = detail_zh
        self.retry_after_ms = retry_after_ms
        self.errors = tuple(errors)
        self.extra = dict(extra or {})
        self.headers = {**self.fixed_headers, **(headers or {})}
        self.shared = shared

    def document(self, *, language: Language, request_id: str) -> dict[str, object]:
        """Return the problem document, ready for a JSON encoder."""
        zh = language == "zh-CN"
        document: dict[str, object] = {
            "type": TYPE_PREFIX + self.code,
            "title": self.title_zh if zh else self.title_en,
            "status": self.status,
            "detail": (self.detail_zh or self.title_zh) if zh else (self.detail_en or self.title_en),
            "code": self.code,
            "retryable": self.retryable,
            "request_id": request_id,
        }
        if self.retry_after_ms is not None:
            document["retry_after_ms"] = self.retry_after_ms
        if self.errors:
            document["errors"] = [error.told(language) for error in self.errors]
        document.update(self.extra)
        return document

    @property
    def retry_after_seconds(self) -> int | None:
        """Return the `Retry-After` header's value: whole seconds, never zero (RFC 9110, 10.2.3)."""
        if self.retry_after_ms is None:
            return None
        return max(1, -(-self.retry_after_ms // 1000))


def jittered_ms(around_ms: int) -> int:
    """Return `around_ms` plus up to half as much again, so that phones sent away do not return as one."""
    return around_ms + random.randrange(around_ms // 2 + 1)  # noqa: S311 - spreads load, guards nothing


def language_of(accept_language: str | None) -> Language:
    """Return the language to speak: Chinese unless the header prefers English (RFC 9110, 12.5.4)."""
    if not accept_language:
        return "zh-CN"
    # Phones send few different headers. A long one is no phone's, and is not kept.
    if len(accept_language) <= KEPT_HEADER_BYTES_MAX:
        return _kept_language(accept_language)
    return _preferred(accept_language)


def _preferred(accept_language: str) -> Language:
    best: Language = "zh-CN"
    best_quality = 0.0
    for item in accept_language.split(",")[:10]:
        name, _, parameter = item.strip().partition(";")
        try:
            quality = float(parameter.partition("=")[2]) if parameter else 1.0
        except ValueError:
            continue
        primary = name.strip().lower().split("-")[0]
        if primary in {"zh", "*"} and quality > best_quality:
            best, best_quality = "zh-CN", quality
        elif primary == "en" and quality > best_quality:
            best, best_quality = "en", quality
    return best


_kept_language: Final = lru_cache(maxsize=256)(_preferred)


class MalformedHttp(Problem):
    code = "malformed_http"
    status = 400
    title_en = "The request is not sound HTTP"
    title_zh = "请求不是合法的 HTTP"
    advice_en = "Mend the client: an unknown method, a wrong Content-Length, or a line that is too long."


class RequestTimeout(Problem):
    code = "request_timeout"
    status = 408
    title_en = "The request did not come to its end in time"
    title_zh = "请求发送超时"
    retryable = True
    advice_en = "Send the same request again, on a new connection."


class HeadTooLarge(Problem):
    code = "head_too_large"
    status = 431
    title_en = "The address and the headers are too long"
    title_zh = "请求头过大"
    advice_en = "Send fewer or shorter headers: together with the address they may have 64 KiB."


class MalformedJson(Problem):
    code = "malformed_json"
    status = 400
    title_en = "The body is not JSON"
    title_zh = "请求体不是合法的 JSON"
    advice_en = "Mend the request; sending it again changes nothing."


class ValidationFailed(Problem):
    code = "validation_failed"
    status = 422
    title_en = "The request has a wrong field"
    title_zh = "请求中有不正确的字段"
    advice_en = "Look into `errors`: each entry names a field and what is allowed there."


class NotAuthenticated(Problem):
    code = "not_authenticated"
    status = 401
    title_en = "Sign in first"
    title_zh = "请先登录"
    advice_en = "Refresh the access token, or sign in again with a new code from wx.login."


class TokenExpired(Problem):
    code = "token_expired"
    status = 401
    title_en = "The access token has expired"
    title_zh = "登录凭证已过期"
    advice_en = "POST /v1/auth/refresh, then send the request again."


class Forbidden(Problem):
    code = "forbidden"
    status = 403
    title_en = "Your role does not allow this"
    title_zh = "您的角色无权进行此操作"
    advice_en = "Hide the control for this account; asking again changes nothing."


class NotFound(Problem):
    code = "not_found"
    status = 404
    title_en = "There is nothing here for you"
    title_zh = "没有找到"
    advice_en = "The id is wrong, or belongs to somebody else."


class MethodNotAllowed(Problem):
    code = "method_not_allowed"
    status = 405
    title_en = "This path does not take that method"
    title_zh = "此路径不支持该方法"
    advice_en = "See the Allow header."


class Conflict(Problem):
    code = "conflict"
    status = 409
    title_en = "The request contradicts what is stored"
    title_zh = "请求与已有数据冲突"
    advice_en = "Read the resource again, then decide."


class BodyTooLarge(Problem):
    code = "body_too_large"
    status = 413
    title_en = "The body is larger than 64 KiB"
    title_zh = "请求体超过 64 KiB"
    advice_en = "Send less."
    # What is left of the body is not waited for.
    fixed_headers: ClassVar[Mapping[str, str]] = {"Connection": "close"}


class UnsupportedMediaType(Problem):
    code = "unsupported_media_type"
    status = 415
    title_en = "The body must be application/json"
    title_zh = "请求体必须为 application/json"
    advice_en = "Set Content-Type: application/json."


class IdempotencyMismatch(Problem):
    code = "idempotency_mismatch"
    status = 422
    title_en = "This id or key was used for a different request"
    title_zh = "该编号已用于另一个不同的请求"
    advice_en = "Take a new id (or Idempotency-Key) for a new request."


class RateLimited(Problem):
    code = "rate_limited"
    status = 429
    title_en = "Too many requests from this account"
    title_zh = "请求过于频繁"
    retryable = True
    advice_en = "Wait for Retry-After, then send the same request again."


class InternalError(Problem):
    code = "internal_error"
    status = 500
    title_en = "Something broke on our side"
    title_zh = "服务器内部错误"
    retryable = True
    advice_en = "Show request_id to support."


class Unavailable(Problem):
    code = "unavailable"
    status = 503
    title_en = "The service is not available at this moment"
    title_zh = "服务暂时不可用"
    retryable = True
    advice_en = "Wait for Retry-After, then send the same request again."
