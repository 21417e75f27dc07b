"""The schema's history. `storage.migrate` runs it; it needs no alembic.ini.

There is no way back: an older program needs a backup of its time.
"""
