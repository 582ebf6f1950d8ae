"""The invariants as code: each yields one sentence for every breach it finds, and changes nothing."""

from dolake.verify.breach import Breach, Damage, Note
from dolake.verify.compare import Compared
from dolake.verify.lake import verify_lake

__all__ = ["Breach", "Compared", "Damage", "Note", "verify_lake"]
