"""Writes that can be sent again: the `Idempotency-Key` header (IETF draft-ietf-httpapi-idempotency-key-header)."""

from dataclasses import dataclass
from datetime import datetime, timedelta
from hashlib import blake2b
from typing import Final
from uuid import UUID

from sqlalchemy import (
    DateTime,
    Index,
    LargeBinary,
    SmallInteger,
    String,
    delete,
    func,
    select,
    tuple_,
    update,
)
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base


class IdempotencyRecord(Base):
    """The answer that was given to one key of one account, so that it can be given again."""

    __tablename__ = "idempotency_record"

    account_id: Mapped[UUID] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(255), primary_key=True)
    # SHA-256 of method, path and body: the same key with another request is refused.
    request_hash: Mapped[bytes] = mapped_column(LargeBinary)
    status: Mapped[int] = mapped_column(SmallInteger)
    body: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(DateTime(timezone=True), server_default=func.now())

    __table_args__ = (Index("ix_idempotency_record_created_at", "created_at"),)


@dataclass(frozen=True, slots=True)
class Kept:
    """What was answered to a key before; the body is sealed."""

    request_hash: bytes
    status: int
    body: bytes


# The status of a record whose answer is not known yet. Only its own transaction ever sees it.
_OPEN: Final = 0
# Rows deleted in one statement: some 10 ms of work, so that nobody waits long behind it.
FORGET_BATCH_LIMIT: Final = 5_000


def row_id(account_id: UUID, key: str) -> UUID:
    """Return the id that a record's body is sealed for: another record's body does not open in its place."""
    return UUID(bytes=blake2b(account_id.bytes + key.encode(), digest_size=16).digest())


async def begin(
    db: AsyncSession, *, account_id: UUID, key: str, request_hash: bytes, now: datetime, hours: int
) -> Kept | None:
    """Take the key for this transaction, or return what was answered to it within the last `hours`.

    Where another transaction has taken it, waits for its end, at most the lock time-out.
    """
    taking = insert(IdempotencyRecord).values(
        account_id=account_id, key=key, request_hash=request_hash, status=_OPEN, body=b"", created_at=now
    )
    taken = await db.scalar(
        taking.on_conflict_do_update(
            index_elements=[IdempotencyRecord.account_id, IdempotencyRecord.key],
            set_={
                "request_hash": taking.excluded.request_hash,
                "status": taking.excluded.status,
                "body": taking.excluded.body,
                "created_at": taking.excluded.created_at,
            },
            where=IdempotencyRecord.created_at < now - timedelta(hours=hours),
        ).returning(IdempotencyRecord.key)
    )
    if taken is not None:
        return None
    # A statement of its own, for a snapshot that sees what the other transaction has committed.
    found = await db.execute(
        select(IdempotencyRecord.request_hash, IdempotencyRecord.status, IdempotencyRecord.body).where(
            IdempotencyRecord.account_id == account_id, IdempotencyRecord.key == key
        )
    )
    return Kept(*found.one())


async def keep(db: AsyncSession, *, account_id: UUID, key: str, status: int, body: bytes) -> None:
    """Fill the record of a key that this transaction has taken."""
    await db.execute(
        update(IdempotencyRecord)
        .where(IdempotencyRecord.account_id == account_id, IdempotencyRecord.key == key)
        .values(status=status, body=body)
    )


async def forget(db: AsyncSession, *, account_id: UUID, key: str) -> None:
    """Give back a key that this transaction has taken."""
    await db.execute(
        delete(IdempotencyRecord).where(IdempotencyRecord.account_id == account_id, IdempotencyRecord.key == key)
    )


async def forget_expired(db: AsyncSession, *, now: datetime, hours: int) -> int:
    """Delete up to 5,000 records older than `hours` and return how many; call it again while it returns that many."""
    old = (
        select(IdempotencyRecord.account_id, IdempotencyRecord.key)
        .where(IdempotencyRecord.created_at < now - timedelta(hours=hours))
        .order_by(IdempotencyRecord.created_at)
        .limit(FORGET_BATCH_LIMIT)
        .with_for_update(skip_locked=True)
    )
    deleted = await db.execute(
        delete(IdempotencyRecord)
        .where(tuple_(IdempotencyRecord.account_id, IdempotencyRecord.key).in_(old))
        .returning(IdempotencyRecord.created_at)
    )
    return len(deleted.all())
