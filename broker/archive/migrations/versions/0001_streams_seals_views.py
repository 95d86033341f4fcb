"""Streams, seals and views."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "streams",
        sa.Column("sid", sa.String, primary_key=True),
        sa.Column("tenant", sa.String, nullable=False),
        sa.Column("session", sa.String),
        sa.Column("user", sa.String),
        sa.Column("model", sa.String),
        sa.Column("state", sa.String, nullable=False),
        sa.Column("created", sa.BigInteger, nullable=False),
        sa.Column("finished", sa.BigInteger, nullable=False),
        sa.Column("events", sa.Integer, nullable=False),
        sa.Column("tail", sa.BigInteger, nullable=False),
        sa.Column("archived", sa.BigInteger, nullable=False),
        sa.Column("seal", sa.BigInteger, nullable=False),
        sa.Column("erased", sa.BigInteger),
        sa.Column("erasure", sa.BigInteger),
        sa.Column("salt", sa.LargeBinary),
        sa.Column("record", sa.LargeBinary),
        sa.Column("log", sa.LargeBinary),
    )
    op.create_index("streams_newest", "streams", ["tenant", "created", "sid"])
    op.create_index("streams_by_session", "streams", ["tenant", "session", "created", "sid"])
    op.create_index("streams_by_user", "streams", ["tenant", "user", "created", "sid"])
    op.create_index("streams_by_model", "streams", ["tenant", "model", "created", "sid"])
    op.create_index("streams_by_state", "streams", ["tenant", "state", "created", "sid"])
    op.create_index("streams_kept", "streams", ["tenant", "erased", "finished"])
    op.create_table(
        "seals",
        sa.Column("tenant", sa.String, nullable=False),
        sa.Column("number", sa.BigInteger, nullable=False),
        sa.Column("statement", sa.LargeBinary, nullable=False),
        sa.Column("signature", sa.LargeBinary, nullable=False),
        sa.PrimaryKeyConstraint("tenant", "number"),
    )
    op.create_table(
        "views",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("tenant", sa.String, nullable=False),
        sa.Column("sid", sa.String, nullable=False),
        sa.Column("opened", sa.BigInteger),
        sa.Column("record", sa.LargeBinary),
        sa.Column("digest", sa.String, nullable=False),
        sa.Column("seal", sa.BigInteger, nullable=False),
    )
    op.create_index("views_of_a_stream", "views", ["sid", "opened", "id"])
    op.create_index("views_of_a_seal", "views", ["tenant", "seal"])
