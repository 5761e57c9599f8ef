"""The Kafka brokers that the settings name."""

from typing import TYPE_CHECKING, Any

import dagster as dg

from kb_platform.errors import SettingsError
from kb_platform.settings import Settings
from resources.plain import PlainResource

if TYPE_CHECKING:
    from kb_platform.streams.broker import Brokers


class BrokersResource(PlainResource[Any]):
    """How clients reach the brokers (`KB_KAFKA_BOOTSTRAP_SERVERS`); None where Kafka is off. Connects to nothing."""

    # Dagster reads this annotation when it makes the class: it cannot be text, so no `annotations` from __future__.
    settings: dg.ResourceDependency[Settings]

    def create_resource(self, context: dg.InitResourceContext) -> "Brokers | None":
        """Raises SettingsError for settings that no client can be made with."""
        del context
        return brokers_of(self.settings)


def brokers_of(settings: Settings) -> "Brokers | None":
    """The brokers; None where Kafka is off. Raises SettingsError."""
    if not settings.kafka_bootstrap_servers:
        return None
    # The client's library is loaded where it is used.
    from kb_platform.streams.broker import Brokers

    return Brokers(settings)


def required(brokers: Any) -> "Brokers":
    """The brokers that a step got. Raises SettingsError where Kafka is off."""
    if brokers is None:
        raise SettingsError(
            "Kafka is off: KB_KAFKA_BOOTSTRAP_SERVERS is not set",
            hint="set it to the brokers, HOST:PORT,…, and restart",
        )
    return brokers
