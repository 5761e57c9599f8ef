"""The knowledge base's PostgreSQL, its schema up to date."""

from collections.abc import Generator
from contextlib import contextmanager

import dagster as dg

from kb_platform.home import open_database
from kb_platform.settings import Settings
from kb_platform.store.database import Database
from resources.plain import PlainResource


class DatabaseResource(PlainResource[Database]):
    """A pool of connections to the knowledge base (`KB_DATABASE_URL`, else the embedded server, started when needed)."""

    # Dagster reads this annotation when it makes the class: it cannot be text, so no `annotations` from __future__.
    settings: dg.ResourceDependency[Settings]

    def create_resource(self, context: dg.InitResourceContext) -> Database:
        """Raises DatabaseUnavailable, MigrationError."""
        del context
        return open_database(self.settings)

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Generator[Database]:
        """The pool is closed with the run: the process may go on to others."""
        database = self.create_resource(context)
        try:
            yield database
        finally:
            database.close()
