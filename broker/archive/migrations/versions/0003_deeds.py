"""Deeds: who did what."""

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.create_table(
        "deeds",
        sa.Column("id", sa.String, primary_key=True),
        sa.Column("tenant", sa.String, nullable=False),
        sa.Column("at", sa.BigInteger),
        sa.Column("who", sa.String),
        sa.Column("what", sa.String),
        sa.Column("stream", sa.String),
        sa.Column("person", sa.String),
        sa.Column("record", sa.LargeBinary),
        sa.Column("digest", sa.String, nullable=False),
        sa.Column("seal", sa.BigInteger, nullable=False),
    )
    op.create_index("deeds_of_a_person", "deeds", ["tenant", "person"])
    op.create_index("deeds_of_a_seal", "deeds", ["tenant", "seal"])
    op.create_index("deeds_newest", "deeds", ["tenant", "at", "id"])
    op.create_index("deeds_of_a_stream", "deeds", ["tenant", "stream", "at", "id"])
