"""The schema's history. `storage.migrate` runs it; it needs no alembic.ini."""
