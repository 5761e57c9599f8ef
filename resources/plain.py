"""The base of our resources: configured by Dagster, handing out a plain object.

Dagster documents `create_resource` but exports only `ConfigurableResource`, which hands out itself. This is the one place
that knows where its base lies.
"""

from dagster._config.pythonic_config import ConfigurableResourceFactory as PlainResource

__all__ = ["PlainResource"]
