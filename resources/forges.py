"""The forges that are polled, with the credentials that the settings give for them."""

from collections.abc import Generator
from contextlib import contextmanager

import dagster as dg

from kb_platform import home
from kb_platform.settings import Settings
from kb_platform.stages.polling_session import ForgeFor
from resources.plain import PlainResource


class ForgesResource(PlainResource[ForgeFor]):
    """GitHub and any Gitea on the watch list; each is made once, when it is first asked for."""

    # Dagster reads this annotation when it makes the class: it cannot be text, so no `annotations` from __future__.
    settings: dg.ResourceDependency[Settings]

    def create_resource(self, context: dg.InitResourceContext) -> ForgeFor:
        """A function that raises SettingsError."""
        del context
        return home.Forges(self.settings)

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Generator[ForgeFor]:
        """The connections are closed with the run."""
        del context
        forges = home.Forges(self.settings)
        try:
            yield forges
        finally:
            forges.close()
