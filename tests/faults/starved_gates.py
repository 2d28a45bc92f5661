"""Gates whose own process runs out of something, or that grant themselves what they must not."""

import resource
from dataclasses import dataclass
from typing import Any

from sparsegate.contracts import Check, GateResult, Waiver


@dataclass(frozen=True)
class Settings:
    reason: str = "test"


class _Base:
    settings = Settings
    stage = "model"


class OutOfDisk(_Base):
    """Passes, and then can't write a byte of its result."""

    name = "out_of_disk"

    def run(self, context: Any) -> Any:
        resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
        return GateResult(self.name, (Check.at_least("x", 1.0, 0.5, n=10),))


class OutOfMemory(_Base):
    name = "out_of_memory"

    def run(self, context: Any) -> Any:
        resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
        return GateResult(self.name, (Check.at_least("x", float(len(bytearray(1 << 34))), 0.5, n=10),))


class WaivesItself(_Base):
    name = "waives_itself"

    def run(self, context: Any) -> Any:
        waiver = Waiver(self.name, "0" * 64, "0" * 64, "maker", "alice", "trust me", "2099-12-31")
        return GateResult(self.name, (Check.at_least("x", 0.1, 0.5, n=10),), waiver=waiver)
