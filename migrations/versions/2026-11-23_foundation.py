"""Accounts, stations, programme and booking.

Revision: foundation
Follows:
"""

# SQLAlchemy leaves the parameters of some column types open where nothing infers them, as here.
# pyright: reportUnknownMemberType=false, reportUnknownArgumentType=false

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects import postgresql

revision = "foundation"
down_revision = None
branch_labels = None
depends_on = None


def upgrade() -> None:
    """Create every table."""
    op.execute("CREATE EXTENSION IF NOT EXISTS btree_gist")
    op.create_table(
        "account",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("openid", sa.String(length=128), nullable=False),
        sa.Column("unionid", sa.String(length=128), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("blocked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_account")),
    )
    op.create_index("uq_account_openid", "account", ["openid"], unique=True)
    op.create_table(
        "idempotency_record",
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("key", sa.String(length=255), nullable=False),
        sa.Column("request_hash", sa.LargeBinary(), nullable=False),
        sa.Column("status", sa.SmallInteger(), nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.PrimaryKeyConstraint("account_id", "key", name=op.f("pk_idempotency_record")),
    )
    op.create_index("ix_idempotency_record_created_at", "idempotency_record", ["created_at"], unique=False)
    op.create_table(
        "person",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("nickname_sealed", sa.LargeBinary(), nullable=False),
        sa.Column("birth_month", sa.String(length=7), nullable=False),
        sa.Column("resident_unit_id", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("removed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "birth_month ~ '^(19|20)[0-9]{2}-(0[1-9]|1[0-2])$'", name=op.f("ck_person_birth_month_form")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_person")),
    )
    op.create_table(
        "release",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("title", sa.String(length=120), nullable=False),
        sa.Column("mode", sa.String(length=16), server_default="grab", nullable=False),
        sa.Column("state", sa.String(length=16), server_default="draft", nullable=False),
        sa.Column("opens_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("closes_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("person_limit", sa.SmallInteger(), nullable=False),
        sa.Column("account_limit", sa.SmallInteger(), nullable=False),
        sa.Column("rules", sa.Text(), server_default="", nullable=False),
        sa.Column("rules_version", sa.String(length=32), nullable=True),
        sa.Column("epoch", sa.BigInteger(), server_default="0", nullable=False),
        sa.Column("gate_identity", sa.String(length=128), nullable=True),
        sa.Column("created_by", sa.Uuid(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("(state = 'draft') = (rules_version IS NULL)", name=op.f("ck_release_published_has_rules")),
        sa.CheckConstraint("mode IN ('grab')", name=op.f("ck_release_mode_known")),
        sa.CheckConstraint("state IN ('draft', 'published', 'cancelled')", name=op.f("ck_release_state_known")),
        sa.CheckConstraint("closes_at > opens_at", name=op.f("ck_release_closes_after_opening")),
        sa.CheckConstraint("epoch >= 0", name=op.f("ck_release_epoch_not_negative")),
        sa.CheckConstraint("person_limit >= 1 AND account_limit >= 1", name=op.f("ck_release_limits_positive")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_release")),
    )
    op.create_index("ix_release_opens_at", "release", ["opens_at"], unique=False)
    op.create_table(
        "unit",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(length=24), nullable=False),
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("kind IN ('village', 'residential_area')", name=op.f("ck_unit_kind_known")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_unit")),
    )
    op.create_index("uq_unit_name", "unit", ["name"], unique=True)
    op.create_table(
        "claim",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("release_id", sa.Uuid(), nullable=False),
        sa.Column("account_id", sa.Uuid(), nullable=True),
        sa.Column("acted_by", sa.Uuid(), nullable=True),
        sa.Column("epoch", sa.BigInteger(), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=True),
        sa.Column("state", sa.String(length=16), nullable=False),
        sa.Column("rules_version", sa.String(length=32), nullable=True),
        sa.Column("request", postgresql.JSONB(astext_type=sa.Text()), nullable=True),
        sa.Column("fingerprint", sa.LargeBinary(), nullable=True),
        sa.Column("decided_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revision", sa.Integer(), server_default="1", nullable=False),
        sa.Column("gate_revision", sa.Integer(), server_default="1", nullable=False),
        sa.CheckConstraint("(state = 'void') = (account_id IS NULL)", name=op.f("ck_claim_void_is_nobodys")),
        sa.CheckConstraint(
            "state IN ('confirmed', 'waitlisted', 'cancelled', 'void')", name=op.f("ck_claim_state_known")
        ),
        sa.ForeignKeyConstraint(["release_id"], ["release.id"], name=op.f("fk_claim_release_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_claim")),
    )
    op.create_index("ix_claim_account", "claim", ["account_id", sa.literal_column("decided_at DESC")], unique=False)
    op.create_index(
        "ix_claim_gate_behind",
        "claim",
        ["release_id"],
        unique=False,
        postgresql_where=sa.text("gate_revision < revision"),
    )
    op.create_index("ix_claim_release", "claim", ["release_id"], unique=False)
    op.create_table(
        "consent",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("person_id", sa.Uuid(), nullable=False),
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("version", sa.String(length=32), nullable=False),
        sa.Column("purposes", postgresql.ARRAY(sa.Text()), nullable=False),
        sa.Column("given_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("withdrawn_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["account_id"], ["account.id"], name=op.f("fk_consent_account_id"), ondelete="CASCADE"),
        sa.ForeignKeyConstraint(["person_id"], ["person.id"], name=op.f("fk_consent_person_id"), ondelete="CASCADE"),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_consent")),
    )
    op.create_index(
        "uq_consent_standing",
        "consent",
        ["person_id", "account_id"],
        unique=True,
        postgresql_where=sa.text("withdrawn_at IS NULL"),
    )
    op.create_table(
        "guardian_invitation",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("person_id", sa.Uuid(), nullable=False),
        sa.Column("inviter_id", sa.Uuid(), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("accepted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("accepted_by", sa.Uuid(), nullable=True),
        sa.ForeignKeyConstraint(
            ["accepted_by"], ["account.id"], name=op.f("fk_guardian_invitation_accepted_by"), ondelete="SET NULL"
        ),
        sa.ForeignKeyConstraint(
            ["inviter_id"], ["account.id"], name=op.f("fk_guardian_invitation_inviter_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["person_id"], ["person.id"], name=op.f("fk_guardian_invitation_person_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_guardian_invitation")),
    )
    op.create_index("ix_guardian_invitation_person", "guardian_invitation", ["person_id"], unique=False)
    op.create_index("uq_guardian_invitation_token_hash", "guardian_invitation", ["token_hash"], unique=True)
    op.create_table(
        "guardianship",
        sa.Column("person_id", sa.Uuid(), nullable=False),
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("relation", sa.String(length=16), nullable=False),
        sa.Column("since", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint("relation IN ('child', 'self', 'other')", name=op.f("ck_guardianship_relation_known")),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name=op.f("fk_guardianship_account_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["person_id"], ["person.id"], name=op.f("fk_guardianship_person_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("person_id", "account_id", name=op.f("pk_guardianship")),
    )
    op.create_index("ix_guardianship_account", "guardianship", ["account_id"], unique=False)
    op.create_index(
        "uq_guardianship_one_self",
        "guardianship",
        ["account_id"],
        unique=True,
        postgresql_where=sa.text("relation = 'self'"),
    )
    op.create_table(
        "refresh_token",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("family_id", sa.Uuid(), nullable=False),
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("token_hash", sa.LargeBinary(), nullable=False),
        sa.Column("issued_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name=op.f("fk_refresh_token_account_id"), ondelete="CASCADE"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_refresh_token")),
    )
    op.create_index("ix_refresh_token_account", "refresh_token", ["account_id"], unique=False)
    op.create_index("ix_refresh_token_expires_at", "refresh_token", ["expires_at"], unique=False)
    op.create_index("ix_refresh_token_family", "refresh_token", ["family_id"], unique=False)
    op.create_index("uq_refresh_token_hash", "refresh_token", ["token_hash"], unique=True)
    op.create_table(
        "role_grant",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("account_id", sa.Uuid(), nullable=False),
        sa.Column("role", sa.String(length=32), nullable=False),
        sa.Column("scope_kind", sa.String(length=16), nullable=True),
        sa.Column("scope_id", sa.Uuid(), nullable=True),
        sa.Column("granted_by", sa.Uuid(), nullable=True),
        sa.Column("granted_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("scope_kind IN ('station', 'unit', 'group')", name=op.f("ck_role_grant_scope_kind_known")),
        sa.CheckConstraint("(scope_kind IS NULL) = (scope_id IS NULL)", name=op.f("ck_role_grant_scope_whole")),
        sa.ForeignKeyConstraint(
            ["account_id"], ["account.id"], name=op.f("fk_role_grant_account_id"), ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["granted_by"], ["account.id"], name=op.f("fk_role_grant_granted_by"), ondelete="SET NULL"
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_role_grant")),
    )
    op.create_index(
        "uq_role_grant_standing",
        "role_grant",
        ["account_id", "role", "scope_kind", "scope_id"],
        unique=True,
        postgresql_where=sa.text("revoked_at IS NULL"),
        postgresql_nulls_not_distinct=True,
    )
    op.create_table(
        "station",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.String(length=24), nullable=False),
        sa.Column("name", sa.String(length=80), nullable=False),
        sa.Column("parent_id", sa.Uuid(), nullable=True),
        sa.Column("host_kind", sa.String(length=24), nullable=False),
        sa.Column("unit_id", sa.Uuid(), nullable=True),
        sa.Column("address", sa.String(length=200), server_default="", nullable=False),
        sa.Column("longitude_deg", sa.Double(), nullable=True),
        sa.Column("latitude_deg", sa.Double(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("closed_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "(kind = 'service_point') = (parent_id IS NOT NULL)", name=op.f("ck_station_point_has_parent")
        ),
        sa.CheckConstraint(
            "host_kind IN ('village', 'residential_area', 'new_sector_org', 'enterprise')",
            name=op.f("ck_station_host_kind_known"),
        ),
        sa.CheckConstraint("kind IN ('service_station', 'service_point')", name=op.f("ck_station_kind_known")),
        sa.CheckConstraint("latitude_deg BETWEEN -90 AND 90", name=op.f("ck_station_latitude_range")),
        sa.CheckConstraint("longitude_deg BETWEEN -180 AND 180", name=op.f("ck_station_longitude_range")),
        sa.ForeignKeyConstraint(["parent_id"], ["station.id"], name=op.f("fk_station_parent_id")),
        sa.ForeignKeyConstraint(["unit_id"], ["unit.id"], name=op.f("fk_station_unit_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_station")),
    )
    op.create_index("ix_station_parent", "station", ["parent_id"], unique=False)
    op.create_index("ix_station_unit", "station", ["unit_id"], unique=False)
    op.create_index("uq_station_name", "station", ["name"], unique=True)
    op.create_table(
        "activity",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("station_id", sa.Uuid(), nullable=False),
        sa.Column("title", sa.String(length=120), nullable=False),
        sa.Column("summary", sa.Text(), server_default="", nullable=False),
        sa.Column("audience", sa.String(length=24), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.CheckConstraint(
            "audience IN ('pupils', 'elderly', 'families', 'everyone')", name=op.f("ck_activity_audience_known")
        ),
        sa.ForeignKeyConstraint(["station_id"], ["station.id"], name=op.f("fk_activity_station_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_activity")),
    )
    op.create_index("ix_activity_station", "activity", ["station_id"], unique=False)
    op.create_table(
        "pool",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("release_id", sa.Uuid(), nullable=False),
        sa.Column("ordinal", sa.SmallInteger(), nullable=False),
        sa.Column("kind", sa.String(length=24), nullable=False),
        sa.Column("title", sa.String(length=120), nullable=False),
        sa.Column("station_id", sa.Uuid(), nullable=True),
        sa.Column("during", postgresql.TSTZRANGE(), nullable=False),
        sa.Column("age_min", sa.SmallInteger(), nullable=True),
        sa.Column("age_max", sa.SmallInteger(), nullable=True),
        sa.Column("resident_unit_id", sa.Uuid(), nullable=True),
        sa.Column("waitlist_limit", sa.Integer(), server_default="0", nullable=False),
        sa.Column("state", sa.String(length=16), server_default="open", nullable=False),
        sa.CheckConstraint("state IN ('open', 'cancelled')", name=op.f("ck_pool_state_known")),
        sa.CheckConstraint(
            "NOT isempty(during) AND NOT lower_inf(during) AND NOT upper_inf(during)",
            name=op.f("ck_pool_during_bounded"),
        ),
        sa.CheckConstraint("age_min >= 0 AND age_max >= age_min", name=op.f("ck_pool_age_band")),
        sa.CheckConstraint("ordinal >= 0", name=op.f("ck_pool_ordinal_not_negative")),
        sa.CheckConstraint("waitlist_limit >= 0", name=op.f("ck_pool_waitlist_limit_not_negative")),
        sa.ForeignKeyConstraint(["release_id"], ["release.id"], name=op.f("fk_pool_release_id")),
        sa.ForeignKeyConstraint(["resident_unit_id"], ["unit.id"], name=op.f("fk_pool_resident_unit_id")),
        sa.ForeignKeyConstraint(["station_id"], ["station.id"], name=op.f("fk_pool_station_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_pool")),
    )
    op.create_index("ix_pool_station", "pool", ["station_id"], unique=False)
    op.create_index("uq_pool_ordinal", "pool", ["release_id", "ordinal"], unique=True)
    op.create_table(
        "activity_session",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("activity_id", sa.Uuid(), nullable=False),
        sa.Column("pool_id", sa.Uuid(), nullable=True),
        sa.Column("starts_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("ends_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("room", sa.String(length=80), server_default="", nullable=False),
        sa.Column("state", sa.String(length=16), server_default="scheduled", nullable=False),
        sa.CheckConstraint("state IN ('scheduled', 'held', 'cancelled')", name=op.f("ck_activity_session_state_known")),
        sa.CheckConstraint("ends_at > starts_at", name=op.f("ck_activity_session_ends_after_start")),
        sa.ForeignKeyConstraint(["activity_id"], ["activity.id"], name=op.f("fk_activity_session_activity_id")),
        sa.ForeignKeyConstraint(["pool_id"], ["pool.id"], name=op.f("fk_activity_session_pool_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_activity_session")),
    )
    op.create_index("ix_activity_session_activity", "activity_session", ["activity_id"], unique=False)
    op.create_index("ix_activity_session_starts_at", "activity_session", ["starts_at"], unique=False)
    op.create_index("uq_activity_session_pool", "activity_session", ["pool_id"], unique=True)
    op.create_table(
        "place",
        sa.Column("pool_id", sa.Uuid(), nullable=False),
        sa.Column("place_no", sa.Integer(), autoincrement=False, nullable=False),
        sa.Column("lane", sa.String(length=8), server_default="online", nullable=False),
        sa.CheckConstraint("lane IN ('online', 'walk_in', 'staff')", name=op.f("ck_place_lane_known")),
        sa.CheckConstraint("place_no >= 1", name=op.f("ck_place_place_no_positive")),
        sa.ForeignKeyConstraint(["pool_id"], ["pool.id"], name=op.f("fk_place_pool_id")),
        sa.PrimaryKeyConstraint("pool_id", "place_no", name=op.f("pk_place")),
    )
    op.create_table(
        "booking",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("claim_id", sa.Uuid(), nullable=False),
        sa.Column("position", sa.SmallInteger(), nullable=False),
        sa.Column("person_id", sa.Uuid(), nullable=False),
        sa.Column("pool_id", sa.Uuid(), nullable=False),
        sa.Column("place_no", sa.Integer(), nullable=True),
        sa.Column("during", postgresql.TSTZRANGE(), nullable=False),
        sa.Column("status", sa.String(length=24), nullable=False),
        sa.Column("wait_seq", sa.BigInteger(), nullable=True),
        sa.Column("rules_version", sa.String(length=32), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("changed_at", sa.DateTime(timezone=True), server_default=sa.text("now()"), nullable=False),
        sa.Column("cancelled_reason", sa.String(length=200), nullable=True),
        postgresql.ExcludeConstraint(
            (sa.column("person_id"), "="),
            (sa.column("during"), "&&"),
            where=sa.text("status = 'confirmed'"),
            using="gist",
            name="ex_booking_nobody_in_two_places",
        ),
        sa.CheckConstraint("status <> 'confirmed' OR place_no IS NOT NULL", name=op.f("ck_booking_holder_has_a_place")),
        sa.CheckConstraint(
            "status <> 'waitlisted' OR (place_no IS NULL AND wait_seq IS NOT NULL)",
            name=op.f("ck_booking_waiter_waits"),
        ),
        sa.CheckConstraint(
            "status IN ('confirmed', 'waitlisted', 'cancelled', 'cancelled_by_staff')",
            name=op.f("ck_booking_status_known"),
        ),
        sa.ForeignKeyConstraint(["claim_id"], ["claim.id"], name=op.f("fk_booking_claim_id")),
        sa.ForeignKeyConstraint(["pool_id", "place_no"], ["place.pool_id", "place.place_no"], name="fk_booking_place"),
        sa.ForeignKeyConstraint(["pool_id"], ["pool.id"], name=op.f("fk_booking_pool_id")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_booking")),
    )
    op.create_index("ix_booking_claim", "booking", ["claim_id"], unique=False)
    op.create_index("ix_booking_person", "booking", ["person_id"], unique=False)
    op.create_index(
        "ix_booking_waiting",
        "booking",
        ["pool_id", "wait_seq"],
        unique=False,
        postgresql_where=sa.text("status = 'waitlisted'"),
    )
    op.create_index(
        "uq_booking_one_each_person",
        "booking",
        ["pool_id", "person_id"],
        unique=True,
        postgresql_where=sa.text("status IN ('confirmed', 'waitlisted')"),
    )
    op.create_index(
        "uq_booking_one_holder_each_place",
        "booking",
        ["pool_id", "place_no"],
        unique=True,
        postgresql_where=sa.text("status = 'confirmed'"),
    )


def downgrade() -> None:
    """Drop every table. The extension stays: others may use it."""
    op.drop_index(
        "uq_booking_one_holder_each_place", table_name="booking", postgresql_where=sa.text("status = 'confirmed'")
    )
    op.drop_index(
        "uq_booking_one_each_person",
        table_name="booking",
        postgresql_where=sa.text("status IN ('confirmed', 'waitlisted')"),
    )
    op.drop_index("ix_booking_waiting", table_name="booking", postgresql_where=sa.text("status = 'waitlisted'"))
    op.drop_index("ix_booking_person", table_name="booking")
    op.drop_index("ix_booking_claim", table_name="booking")
    op.drop_table("booking")
    op.drop_table("place")
    op.drop_index("uq_activity_session_pool", table_name="activity_session")
    op.drop_index("ix_activity_session_starts_at", table_name="activity_session")
    op.drop_index("ix_activity_session_activity", table_name="activity_session")
    op.drop_table("activity_session")
    op.drop_index("uq_pool_ordinal", table_name="pool")
    op.drop_index("ix_pool_station", table_name="pool")
    op.drop_table("pool")
    op.drop_index("ix_activity_station", table_name="activity")
    op.drop_table("activity")
    op.drop_index("uq_station_name", table_name="station")
    op.drop_index("ix_station_unit", table_name="station")
    op.drop_index("ix_station_parent", table_name="station")
    op.drop_table("station")
    op.drop_index(
        "uq_role_grant_standing",
        table_name="role_grant",
        postgresql_where=sa.text("revoked_at IS NULL"),
        postgresql_nulls_not_distinct=True,
    )
    op.drop_table("role_grant")
    op.drop_index("uq_refresh_token_hash", table_name="refresh_token")
    op.drop_index("ix_refresh_token_family", table_name="refresh_token")
    op.drop_index("ix_refresh_token_expires_at", table_name="refresh_token")
    op.drop_index("ix_refresh_token_account", table_name="refresh_token")
    op.drop_table("refresh_token")
    op.drop_index("uq_guardianship_one_self", table_name="guardianship", postgresql_where=sa.text("relation = 'self'"))
    op.drop_index("ix_guardianship_account", table_name="guardianship")
    op.drop_table("guardianship")
    op.drop_index("uq_guardian_invitation_token_hash", table_name="guardian_invitation")
    op.drop_index("ix_guardian_invitation_person", table_name="guardian_invitation")
    op.drop_table("guardian_invitation")
    op.drop_index("uq_consent_standing", table_name="consent", postgresql_where=sa.text("withdrawn_at IS NULL"))
    op.drop_table("consent")
    op.drop_index("ix_claim_release", table_name="claim")
    op.drop_index("ix_claim_gate_behind", table_name="claim", postgresql_where=sa.text("gate_revision < revision"))
    op.drop_index("ix_claim_account", table_name="claim")
    op.drop_table("claim")
    op.drop_index("uq_unit_name", table_name="unit")
    op.drop_table("unit")
    op.drop_index("ix_release_opens_at", table_name="release")
    op.drop_table("release")
    op.drop_table("person")
    op.drop_index("ix_idempotency_record_created_at", table_name="idempotency_record")
    op.drop_table("idempotency_record")
    op.drop_index("uq_account_openid", table_name="account")
    op.drop_table("account")
