import os
import signal
import subprocess
import sys
import textwrap
import time

import psutil

_WORKER = textwrap.dedent(
    """
    import time
    from sparsegate.parent_process import end_with_parent
    end_with_parent()
    print(1, flush=True)
    time.sleep(600)
    """
)
_PARENT = textwrap.dedent(
    f"""
    import subprocess, sys
    worker = subprocess.Popen([sys.executable, "-c", {_WORKER!r}], stdout=subprocess.PIPE)
    worker.stdout.readline()
    print(worker.pid, flush=True)
    worker.wait()
    """
)


def test_a_worker_ends_when_the_process_that_it_works_for_is_killed():
    with subprocess.Popen([sys.executable, "-u", "-c", _PARENT], stdout=subprocess.PIPE, text=True) as parent:
        worker = psutil.Process(int(parent.stdout.readline()))
        os.kill(parent.pid, signal.SIGKILL)
    try:
        psutil.wait_procs([worker], timeout=60)
        assert not worker.is_running() or worker.status() == psutil.STATUS_ZOMBIE
    finally:
        if worker.is_running():
            worker.kill()


def test_a_worker_goes_on_while_its_parent_is_there():
    with subprocess.Popen([sys.executable, "-u", "-c", _WORKER], stdout=subprocess.PIPE) as worker:
        worker.stdout.readline()
        time.sleep(2.5)  # more than two looks
        assert worker.poll() is None
        worker.kill()
