"""What turns passages into vectors: the configured model's description, and a loader of embedders.

Both are functions, so that a step that embeds nothing loads no model and asks no server.
"""

from collections.abc import Callable, Generator
from contextlib import ExitStack, closing, contextmanager

import dagster as dg

from kb_platform import home
from kb_platform.embedding.embedder import Embedder
from kb_platform.embedding.model import EmbeddingModel
from kb_platform.settings import Settings
from resources.plain import PlainResource

Loader = Callable[[EmbeddingModel], Embedder]
Configured = Callable[[], EmbeddingModel]


class EmbedderLoaderResource(PlainResource[Loader]):
    """Loads the embedder of a model, on the device and within the limits that the settings give; each model once."""

    # Dagster reads this annotation when it makes the class: it cannot be text, so no `annotations` from __future__.
    settings: dg.ResourceDependency[Settings]

    def create_resource(self, context: dg.InitResourceContext) -> Loader:
        """A loader whose embedders live as long as the process."""
        del context
        return self._loader(ExitStack())

    @contextmanager
    def yield_for_execution(self, context: dg.InitResourceContext) -> Generator[Loader]:
        """A loader whose embedders are closed with the run."""
        del context
        with ExitStack() as loaded:
            yield self._loader(loaded)

    def _loader(self, loaded: ExitStack) -> Loader:
        settings = self.settings
        embedders: dict[str, Embedder] = {}

        def load(model: EmbeddingModel) -> Embedder:
            if model.key not in embedders:
                embedders[model.key] = loaded.enter_context(closing(home.embedder(settings, model)))
            return embedders[model.key]

        return load


class ConfiguredModelResource(PlainResource[Configured]):
    """Describes the model that the settings name (`KB_EMBEDDING_MODEL`)."""

    # Dagster reads this annotation when it makes the class: it cannot be text, so no `annotations` from __future__.
    settings: dg.ResourceDependency[Settings]

    def create_resource(self, context: dg.InitResourceContext) -> Configured:
        """A function that raises ModelError."""
        del context
        settings = self.settings
        return lambda: home.configured_model(settings)
