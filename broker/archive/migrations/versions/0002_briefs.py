"""Records without their requests, for whoever does not need those."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.create_table(
        "briefs",
        sa.Column("sid", sa.String, primary_key=True),
        sa.Column("brief", sa.LargeBinary, nullable=False),
    )
