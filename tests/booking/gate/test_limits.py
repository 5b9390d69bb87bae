"""One account's flood is that account's matter."""

import pytest

from app.booking.gate.limits import AccountLimit
from app.core.problems import RateLimited


def test_an_account_beyond_its_limit_waits_for_the_next_second_and_others_do_not() -> None:
    limit = AccountLimit("claims", 3)
    for _ in range(3):
        limit.count(b"flood", 10_400)
    with pytest.raises(RateLimited) as refused:
        limit.count(b"flood", 10_400)
    assert refused.value.retry_after_ms is not None
    assert 600 <= refused.value.retry_after_ms <= 900
    assert refused.value.headers == {"RateLimit-Policy": '"claims";q=3;w=1', "RateLimit": '"claims";r=0;t=1'}
    limit.count(b"other", 10_400)
    limit.count(b"flood", 11_000)
