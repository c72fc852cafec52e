"""Steps from one schema to the next, run by alembic when the store is opened. A step that ran is never edited."""
