"""Kills seeded retrains wherever chance says, starts them again, and prints what came of it.

python tests/benchmarks/chaos.py 100
"""

import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

sys.path.append(str(Path(__file__).parents[1] / "chaos"))

from nights import Processes, Project


def main(count):
    """Run so many nights; return how many did not end as a night that was left alone."""
    with tempfile.TemporaryDirectory() as scratch:
        processes = Processes(Path(scratch))
        try:
            return _nights(count, Path(scratch), processes)
        finally:
            processes.close()


def _nights(count, folder, processes):
    alone = Project(folder / "alone", processes)
    points = {}
    for slot in ("first", "second"):
        assert alone.retrain(slot, trace=folder / f"{slot}.trace").code == 0
        points[slot] = list(dict.fromkeys((folder / f"{slot}.trace").read_text().splitlines()))
    expected, found = alone.state(), Counter()
    for seed in range(count):
        draw, project = random.Random(seed), Project(folder / f"night{seed}", processes)
        kills = {slot: draw.choice(points[slot]) for slot in ("first", "second")}
        ends = [project.retrain(slot, stop_at=kill).code for slot, kill in kills.items() for kill in (kill, None)]
        state = project.state()
        wrong = [name for name in expected if state[name] != expected[name]]
        if not project.verify()["verified"]:
            wrong.append("evidence")
        found["differs" if wrong else "the same"] += 1
        sys.stdout.write(f"{seed:>4}  {ends}  {' | '.join(kills.values())}  {', '.join(wrong) or 'the same'}\n")
    sys.stdout.write(f"{dict(found)} of {count} nights of two runs, each killed once\n")
    return found["differs"]


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1])) > 0)
