"""Disturbs seeded nights of retrains wherever chance says, starts them again, and prints what came of it.

python tests/benchmarks/chaos.py 100          # seeds 0 to 99
python tests/benchmarks/chaos.py 1 17         # the one with seed 17

A night is two runs, and a fault strikes each at a random point: kill -9, a full disk, a database that another program
has locked for one to eight seconds, or a tracking server that from some write on is gone, answers 500 or is slow, or
that does one write and loses the answer or answers 500 all the same. In a sixth of the nights a stranger moves the
champion's alias during a third run instead. Then the same command is given again until there is nothing left to do.
"""

import json
import random
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).parents[1] / "chaos"))

from nights import Processes, Project
from proxy import Proxy
from servers import mlflow_server

SLOTS = ("first", "second", "third")
SERVER = ("drop", "refuse", "slow", "lose", "fail")
NIGHTS = ("kill", "full", "lock", "any of these", "server", "stranger")
IMPATIENT = (("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1"), ("MLFLOW_HTTP_REQUEST_BACKOFF_FACTOR", "1"))
ENOUGH = 6  # tries


class Alone(NamedTuple):
    """Nights without a fault: the state after each run, the points it passes, and the writes it sends to a server."""

    states: dict
    points: dict
    served: dict
    writes: dict


class Struck(NamedTuple):
    """A fault that struck a run, and the exit codes from then on."""

    kind: str
    where: str
    codes: list


def main(count, first=0):
    """Run so many nights, from a seed on; return how many did not end as a night that was left alone."""
    with tempfile.TemporaryDirectory() as scratch:
        folder, processes = Path(scratch), Processes(Path(scratch))
        (folder / "server").mkdir()
        try:
            with mlflow_server(folder / "server") as uri, closing(Proxy(uri)) as proxy:
                alone = _left_alone(folder, processes, proxy)
                given = (folder, processes, proxy, alone)
                return _report((seed, *_night(seed, *given)) for seed in range(first, first + count))
        finally:
            processes.close()


def _left_alone(folder, processes, proxy):
    alone = Alone({}, {}, {}, {})
    project = Project(folder / "alone", processes)
    for slot in SLOTS:
        assert project.retrain(slot, trace=folder / f"{slot}.trace").code == 0
        alone.points[slot] = list(dict.fromkeys((folder / f"{slot}.trace").read_text().splitlines()))
        assert not project.leftovers()
        alone.states[slot] = _named_alike(project)
    project = _served(folder / "served", processes, proxy)
    for slot in SLOTS[:2]:
        proxy.reset()
        assert project.retrain(slot).code == 0
        alone.writes[slot] = len(proxy.writes)
    alone.served["second"] = _named_alike(project)
    return alone


def _served(folder, processes, proxy):
    """A project of its own name behind the proxy."""
    proxy.reset()
    return Project(folder, processes, proxy.uri, IMPATIENT, name=f"{folder.name} of the desk")


def _night(seed, folder, processes, proxy, alone):
    """Run a night; return its kind, what struck it, and what is wrong after it."""
    draw, folder = random.Random(seed), folder / f"night{seed}"
    kind = draw.choice(NIGHTS)
    if kind == "server":
        project = _served(folder, processes, proxy)
        struck = [_at_a_write(project, slot, draw, proxy, alone.writes[slot]) for slot in SLOTS[:2]]
        return kind, struck, _wrong(project, alone.served["second"])
    project = Project(folder, processes)
    if kind == "stranger":
        assert [project.retrain(slot).code for slot in SLOTS[:2]] == [0, 0]
        struck = [_at_a_point(project, "third", "move:1", draw.choice(alone.points["third"]))]
        return kind, struck, _wrong_after_a_stranger(project, alone.states["third"])
    struck = []
    for slot in SLOTS[:2]:
        how = draw.choice(NIGHTS[:3]) if kind == "any of these" else kind
        how = f"lock:{draw.uniform(1, 8):.1f}" if how == "lock" else how
        struck.append(_at_a_point(project, slot, how, draw.choice(alone.points[slot])))
    return kind, struck, _wrong(project, alone.states["second"])


def _at_a_point(project, slot, how, point):
    return Struck(how, point, [project.retrain(slot, stop_at=point, how=how).code, *_recover(project, slot)])


def _at_a_write(project, slot, draw, proxy, writes):
    action, first = draw.choice(SERVER), draw.randrange(writes)
    once = action in ("lose", "fail")

    def fault(number, _name):
        return action if number == first or (number > first and not once) else None

    proxy.reset(fault)
    code = project.retrain(slot).code
    where = proxy.writes[first] if len(proxy.writes) > first else "not reached"
    proxy.reset()
    return Struck(action, f"write {first}: {where}", [code, *_recover(project, slot)])


def _recover(project, slot):
    """Give the same command until it is done; return the exit codes."""
    codes = []
    while len(codes) < ENOUGH and (not codes or codes[-1] in (2, 20)):  # 2: the database is still locked
        codes.append(project.retrain(slot).code)
    return codes


def _named_alike(project):
    """Return the project's state, with its name and its runs' keys replaced, as texts that can be compared."""
    state = project.state()
    keys = {key: f"key of version {number}" for number, _, key in state["versions"]}

    def alike(value):
        text = json.dumps(value, sort_keys=True, default=str).replace(project.name, "desk")
        for key, named in keys.items():
            text = text.replace(key, named)
        return text

    return {name: sorted(map(alike, part)) if isinstance(part, list) else alike(part) for name, part in state.items()}


def _wrong(project, expected):
    state = _named_alike(project)
    wrong = [name for name in expected if state[name] != expected[name]]
    return wrong if _verifies(project) else [*wrong, "evidence"]


def _wrong_after_a_stranger(project, expected):
    """Version 1 is where the stranger put the alias; version 3 was then judged against it, or was there before.

    A run whose version was made before the alias moved ends as failed, with exit code 10.
    """
    state = _named_alike(project)
    wrong = [name for name in ("versions", "params", "leftovers") if state[name] != expected[name]]
    if len(state["runs"]) != len(expected["runs"]):
        wrong.append("runs")
    if project.aliases()["champion"] not in (1, 3):
        wrong.append("aliases")
    return wrong if _verifies(project) else [*wrong, "evidence"]


def _verifies(project):
    uri = project.tracking_uri
    ended = project.sparsegate_anyhow("verify", f"models:/{project.name}@champion", "--tracking_uri", uri, "--json")
    return ended.code == 0 and ended.result["verified"]


def _report(nights):
    begun, tally, runs = time.monotonic(), {}, {}
    for seed, kind, struck, wrong in nights:
        tally.setdefault(kind, Counter()).update([*wrong, "nights"] if wrong else ["the same", "nights"])
        for fault in struck:
            runs.setdefault(fault.kind.partition(":")[0], Counter())[fault.codes[0]] += 1
        told = " | ".join(f"{fault.kind} {fault.where} {fault.codes}" for fault in struck)
        sys.stdout.write(f"{seed:>4}  {told}  {', '.join(wrong) or 'the same'}\n")
        sys.stdout.flush()
    sys.stdout.write("\nfault     runs  exit codes of the runs that it struck\n")
    for fault, codes in sorted(runs.items()):
        counted = ", ".join(f"{code}: {number}" for code, number in sorted(codes.items()))
        sys.stdout.write(f"{fault:<8}{codes.total():>6}  {counted}\n")
    total = sum(tally.values(), Counter())
    sys.stdout.write(
        f"\n{total['nights']} nights in {time.monotonic() - begun:.0f} s: {total['the same']} ended as if nothing had"
        f" happened; versions lost or doubled in {total['versions']}, champion without valid evidence in"
        f" {total['evidence']}, files left over in {total['leftovers']}\n"
    )
    return total["nights"] - total["the same"]


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:3])) > 0)
