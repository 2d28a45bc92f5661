"""Energy as Zeus reads it from the kernel's counters, here files of a folder that is laid out like theirs."""

import sys

import pytest
import torch

from sparsegate.workflow.bench.energy import EnergyMeter

CPU = torch.device("cpu")


@pytest.fixture
def counters(tmp_path, monkeypatch):
    """One processor package with its memory, as in ``/sys/class/powercap``; returns what sets both, in uJ."""
    from zeus.device import cpu
    from zeus.device.cpu import rapl

    package = tmp_path / "intel-rapl" / "intel-rapl:0"
    memory = package / "intel-rapl:0:0"
    memory.mkdir(parents=True)
    for folder, name in ((package, "package-0"), (memory, "dram")):
        (folder / "name").write_text(f"{name}\n")
        (folder / "max_energy_range_uj").write_text("262143328850\n")

    def write(package_uj, memory_uj):
        (package / "energy_uj").write_text(f"{package_uj}\n")
        (memory / "energy_uj").write_text(f"{memory_uj}\n")

    write(0, 0)
    monkeypatch.setattr(rapl, "RAPL_DIR", str(tmp_path / "intel-rapl"))
    monkeypatch.setattr(cpu, "_cpus", None)
    rapl.rapl_is_available.cache_clear()
    yield write
    rapl.rapl_is_available.cache_clear()


def test_the_phases_are_summed_and_what_lies_between_them_is_left_out(counters):
    counters(1_000_000, 500_000)
    meter = EnergyMeter(CPU)
    for before, after in ((1_000_000, 3_000_000), (9_000_000, 10_000_000)):
        counters(before, before // 2)
        meter.start()
        counters(after, after // 2)
        meter.stop()
    assert meter.joules == pytest.approx(2 + 1 + (2 + 1) / 2)


def test_a_machine_without_counters_measures_nothing(monkeypatch, tmp_path):
    from zeus.device import cpu
    from zeus.device.cpu import rapl

    monkeypatch.setattr(rapl, "RAPL_DIR", str(tmp_path / "none"))
    monkeypatch.setattr(cpu, "_cpus", None)
    rapl.rapl_is_available.cache_clear()
    meter = EnergyMeter(CPU)
    meter.start()
    meter.stop()
    assert meter.joules is None
    rapl.rapl_is_available.cache_clear()


def test_without_zeus_nothing_is_measured(monkeypatch):
    monkeypatch.setitem(sys.modules, "zeus.monitor", None)
    assert EnergyMeter(CPU).joules is None
