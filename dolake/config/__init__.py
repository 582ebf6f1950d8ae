"""Settings: values with their relations checked, from flags, environment, `dolake.toml` and defaults, in that order.

`load_settings` is the one way in; it reports every mistake at once and creates nothing.
"""

from dolake.config.catalog import CatalogSettings
from dolake.config.limits import LimitSettings
from dolake.config.maintenance import CompactionSettings
from dolake.config.namespaces import TableNames, mapped_name
from dolake.config.settings import (
    CommitSettings,
    FlushSettings,
    LogSettings,
    S3Settings,
    Settings,
    SourceSettings,
    WarehouseSettings,
)
from dolake.config.sources import load_settings, process_environment
from dolake.config.tables import TableSettings

__all__ = [
    "CatalogSettings",
    "CommitSettings",
    "CompactionSettings",
    "FlushSettings",
    "LimitSettings",
    "LogSettings",
    "S3Settings",
    "Settings",
    "SourceSettings",
    "TableNames",
    "TableSettings",
    "WarehouseSettings",
    "load_settings",
    "mapped_name",
    "process_environment",
]
