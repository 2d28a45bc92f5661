"""Gates that go wrong in each way that the runner must withstand. Importable by name from a gate's own process."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Any

from sparsegate.contracts import Check, GateResult
from sparsegate.errors import MissingEvidenceError


@dataclass(frozen=True)
class Settings:
    reason: str = "test"


class _Base:
    settings = Settings
    stage = "model"


class Good(_Base):
    name = "good"

    def run(self, context: Any) -> Any:
        sys.stdout.write("words on standard output\n")
        note = context.facts.get("note")
        return GateResult("good", (Check.at_least("x", 1.0, 0.5, n=10),), details={"pid": os.getpid(), "note": note})


class OfData(Good):
    stage = "data"


class Raises(_Base):
    name = "raises"

    def run(self, context: Any) -> Any:
        raise RuntimeError("it broke\nin two lines")


class Lacks(_Base):
    name = "lacks"

    def run(self, context: Any) -> Any:
        context.path("predictions.candidate")


class LacksPart(_Base):
    name = "lacks_part"

    def run(self, context: Any) -> Any:
        raise MissingEvidenceError("no lines")


class WrongType(_Base):
    name = "wrong_type"

    def run(self, context: Any) -> Any:
        return True


class WrongName(_Base):
    name = "wrong_name"

    def run(self, context: Any) -> Any:
        return GateResult("good", (Check.at_least("x", 1.0, 0.5, n=10),))


class NoChecks(_Base):
    name = "no_checks"

    def run(self, context: Any) -> Any:
        return GateResult("no_checks", ())


class NotJson(_Base):
    name = "not_json"

    def run(self, context: Any) -> Any:
        return GateResult("not_json", (Check.at_least("x", 1.0, 0.5, n=10),), details={"bad": float("nan")})


class Hangs(_Base):
    name = "hangs"

    def run(self, context: Any) -> Any:
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (context.output_dir / "child.pid").write_text(str(child.pid))
        time.sleep(600)


class Killed(_Base):
    name = "killed"

    def run(self, context: Any) -> Any:
        os.kill(os.getpid(), signal.SIGKILL)


class Exits(_Base):
    name = "exits"

    def run(self, context: Any) -> Any:
        os._exit(0)


class ExitsBySystemExit(_Base):
    name = "system_exit"

    def run(self, context: Any) -> Any:
        sys.exit(0)
