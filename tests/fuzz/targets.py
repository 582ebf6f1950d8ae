"""All targets, by name."""

from __future__ import annotations

from tests.fuzz import disk_targets, row_targets, wire_targets

TARGETS = {target.name: target for module in (wire_targets, disk_targets, row_targets) for target in module.TARGETS}
