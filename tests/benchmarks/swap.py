"""Measures how a serving process takes up another version of its model: in all, and while no prediction can start.

python tests/benchmarks/swap.py runs/night night-routing 1 2     # after night.py: its folder, its model, two versions

The alias is moved to and fro by ``rollback``; ``reload`` then takes up the version. First nothing is asked meanwhile,
then another thread asks one message after the other, which is what a swap waits for.
"""

import os
import sys
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import sparsegate
from sparsegate.config import RegistryConfig
from sparsegate.workflow import live, versions

SWAPS = 3
MESSAGE = "my parcel never came"


class Blocked:
    """Clocks how long the turnstile is closed, and how much of that the exchange itself takes."""

    def __init__(self, turnstile):
        self.seconds, self.exchange = 0.0, 0.0
        self._closed = turnstile.closed
        turnstile.closed = self.closed

    @contextmanager
    def closed(self):
        begun = time.perf_counter()
        with self._closed():
            inside = time.perf_counter()
            yield
            self.exchange = time.perf_counter() - inside
        self.seconds = time.perf_counter() - begun


def main(folder, name, numbers):
    """Swap between the versions and print what each swap took."""
    os.chdir(folder)
    signed = Path("key.pem").exists()
    registry = RegistryConfig(name=name, signing_key="key.pem" if signed else None, actor="swap")
    move_to(registry, numbers[0])
    begun = time.perf_counter()
    model = sparsegate.load_champion(name, public_key=Path("key.pub.pem") if signed else None)
    sys.stdout.write(f"loaded version {model.version} in {time.perf_counter() - begun:.2f} s\n")
    blocked = Blocked(model._turnstile)
    sys.stdout.write("asked    to version  reload   blocked  of it the exchange  CPU of this process\n")
    for busy in (False, True):
        stop = threading.Event()
        asking = threading.Thread(target=ask, args=(model, stop))
        if busy:
            asking.start()
        for number in (numbers[1], numbers[0]) * SWAPS:
            move_to(registry, number)
            begun, cpu = time.perf_counter(), time.process_time()
            assert model.reload()
            assert model.version == number
            total, cpu = time.perf_counter() - begun, time.process_time() - cpu
            told = f"{total:>6.2f} s{blocked.seconds:>8.3f} s{blocked.exchange:>18.3f} s{cpu:>19.2f} s"
            sys.stdout.write(f"{'busy' if busy else 'idle':<9}{number:>10}{told}\n")
            sys.stdout.flush()
        stop.set()
        if busy:
            asking.join()


def ask(model, stop):
    while not stop.is_set():
        model.predict([MESSAGE])


def move_to(registry, number):
    if live.live_version(registry.tracking_uri, registry.name, registry.alias) != number:
        versions.rollback(registry, to=number, reason="measuring a swap", bad=False, runs=Path("runs"))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2], [int(number) for number in sys.argv[3:5]])
