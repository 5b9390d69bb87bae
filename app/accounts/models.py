"""Tables of accounts, families and roles."""

from datetime import datetime
from uuid import UUID

from sqlalchemy import CheckConstraint, DateTime, ForeignKey, Index, LargeBinary, String, Text, func, text
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Mapped, mapped_column

from app.core.db import Base
from app.core.ids import new_id

_NOW = func.now()
_INSTANT = DateTime(timezone=True)


class Account(Base):
    """One WeChat user of the mini-program. It holds no name and no phone number."""

    __tablename__ = "account"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    openid: Mapped[str] = mapped_column(String(128))
    unionid: Mapped[str | None] = mapped_column(String(128))
    created_at: Mapped[datetime] = mapped_column(_INSTANT, server_default=_NOW)
    blocked_at: Mapped[datetime | None] = mapped_column(_INSTANT)

    __table_args__ = (Index("uq_account_openid", "openid", unique=True),)


class RefreshToken(Base):
    """One refresh token, stored as its SHA-256. Those that descend from one sign-in share a family."""

    __tablename__ = "refresh_token"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    family_id: Mapped[UUID]
    account_id: Mapped[UUID] = mapped_column(ForeignKey("account.id", ondelete="CASCADE"))
    token_hash: Mapped[bytes] = mapped_column(LargeBinary)
    issued_at: Mapped[datetime] = mapped_column(_INSTANT, server_default=_NOW)
    expires_at: Mapped[datetime] = mapped_column(_INSTANT)
    used_at: Mapped[datetime | None] = mapped_column(_INSTANT)
    revoked_at: Mapped[datetime | None] = mapped_column(_INSTANT)

    __table_args__ = (
        Index("uq_refresh_token_hash", "token_hash", unique=True),
        Index("ix_refresh_token_family", "family_id"),
        Index("ix_refresh_token_account", "account_id"),
        Index("ix_refresh_token_expires_at", "expires_at"),
    )


class Person(Base):
    """Somebody who can be booked for: nickname (sealed) and birth month are all that is known."""

    __tablename__ = "person"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    nickname_sealed: Mapped[bytes] = mapped_column(LargeBinary)
    # The first day of the month of birth; the day itself is not asked for.
    birth_month: Mapped[str] = mapped_column(String(7))
    resident_unit_id: Mapped[UUID | None]
    created_at: Mapped[datetime] = mapped_column(_INSTANT, server_default=_NOW)
    removed_at: Mapped[datetime | None] = mapped_column(_INSTANT)

    __table_args__ = (CheckConstraint("birth_month ~ '^(19|20)[0-9]{2}-(0[1-9]|1[0-2])$'", name="birth_month_form"),)


class Guardianship(Base):
    """An account that may act for a person, and in which relation."""

    __tablename__ = "guardianship"

    person_id: Mapped[UUID] = mapped_column(ForeignKey("person.id", ondelete="CASCADE"), primary_key=True)
    account_id: Mapped[UUID] = mapped_column(ForeignKey("account.id", ondelete="CASCADE"), primary_key=True)
    relation: Mapped[str] = mapped_column(String(16))
    since: Mapped[datetime] = mapped_column(_INSTANT, server_default=_NOW)

    __table_args__ = (
        CheckConstraint("relation IN ('child', 'self', 'other')", name="relation_known"),
        Index("ix_guardianship_account", "account_id"),
        Index(
            "uq_guardianship_one_self",
            "account_id",
            unique=True,
            postgresql_where=text("relation = 'self'"),
        ),
    )


class Consent(Base):
    """A guardian's consent for a person, by version and purpose. Withdrawn ones stay as history."""

    __tablename__ = "consent"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    person_id: Mapped[UUID] = mapped_column(ForeignKey("person.id", ondelete="CASCADE"))
    account_id: Mapped[UUID] = mapped_column(ForeignKey("account.id", ondelete="CASCADE"))
    version: Mapped[str] = mapped_column(String(32))
    purposes: Mapped[list[str]] = mapped_column(ARRAY(Text))
    given_at: Mapped[datetime] = mapped_column(_INSTANT, server_default=_NOW)
    withdrawn_at: Mapped[datetime | None] = mapped_column(_INSTANT)

    __table_args__ = (
        Index(
            "uq_consent_standing",
            "person_id",
            "account_id",
            unique=True,
            postgresql_where=text("withdrawn_at IS NULL"),
        ),
    )


class GuardianInvitation(Base):
    """An offer to a second guardian, good once. Only the SHA-256 of its token is stored."""

    __tablename__ = "guardian_invitation"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    person_id: Mapped[UUID] = mapped_column(ForeignKey("person.id", ondelete="CASCADE"))
    inviter_id: Mapped[UUID] = mapped_column(ForeignKey("account.id", ondelete="CASCADE"))
    token_hash: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[datetime] = mapped_column(_INSTANT, server_default=_NOW)
    expires_at: Mapped[datetime] = mapped_column(_INSTANT)
    accepted_at: Mapped[datetime | None] = mapped_column(_INSTANT)
    accepted_by: Mapped[UUID | None] = mapped_column(ForeignKey("account.id", ondelete="SET NULL"))

    __table_args__ = (
        Index("uq_guardian_invitation_token_hash", "token_hash", unique=True),
        Index("ix_guardian_invitation_person", "person_id"),
    )


class RoleGrant(Base):
    """A role that an account holds, everywhere (`scope_id` null) or for one station, unit or group."""

    __tablename__ = "role_grant"

    id: Mapped[UUID] = mapped_column(primary_key=True, default=new_id)
    account_id: Mapped[UUID] = mapped_column(ForeignKey("account.id", ondelete="CASCADE"))
    role: Mapped[str] = mapped_column(String(32))
    scope_kind: Mapped[str | None] = mapped_column(String(16))
    scope_id: Mapped[UUID | None]
    granted_by: Mapped[UUID | None] = mapped_column(ForeignKey("account.id", ondelete="SET NULL"))
    granted_at: Mapped[datetime] = mapped_column(_INSTANT, server_default=_NOW)
    revoked_at: Mapped[datetime | None] = mapped_column(_INSTANT)

    __table_args__ = (
        CheckConstraint("(scope_kind IS NULL) = (scope_id IS NULL)", name="scope_whole"),
        CheckConstraint("scope_kind IN ('station', 'unit', 'group')", name="scope_kind_known"),
        Index(
            "uq_role_grant_standing",
            "account_id",
            "role",
            "scope_kind",
            "scope_id",
            unique=True,
            postgresql_where=text("revoked_at IS NULL"),
            postgresql_nulls_not_distinct=True,
        ),
    )
