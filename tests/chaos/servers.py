"""Real ``mlflow server`` processes on loopback."""

import os
import signal
import socket
import ssl
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager

# no telemetry, and none of the processes that wait for jobs that nobody gives them
_LEAN = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}


@contextmanager
def mlflow_server(folder, *arguments, certificate=None, **environment):
    """Run a server that keeps everything in a folder and hands artifacts through; yield its URI.

    With a certificate (a file that holds its key too) it speaks TLS.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [sys.executable, "-m", "mlflow", "server", "--host", "127.0.0.1", "--port", str(port), "--workers", "1"]
    command += ["--backend-store-uri", f"sqlite:///{folder / 'server.db'}"]
    command += ["--artifacts-destination", str(folder / "artifacts"), *arguments]
    if certificate is not None:
        command += ["--uvicorn-opts", f"--ssl-certfile {certificate} --ssl-keyfile {certificate}"]
    with (folder / "log").open("wb") as log:
        running = subprocess.Popen(
            command,
            cwd=folder,
            stdout=log,
            stderr=log,
            start_new_session=True,
            env={**os.environ, **_LEAN, **environment},
        )
    uri = f"{'http' if certificate is None else 'https'}://127.0.0.1:{port}"
    try:
        _wait_for(uri, running, folder / "log", certificate)
        yield uri
    finally:
        os.killpg(running.pid, signal.SIGKILL)
        running.wait()


def _wait_for(uri, process, log, certificate):
    trusted = None if certificate is None else ssl.create_default_context(cafile=certificate)
    while process.poll() is None:
        try:
            with urllib.request.urlopen(f"{uri}/health", timeout=5, context=trusted):
                return
        except OSError:
            time.sleep(0.1)
    raise RuntimeError(f"mlflow server did not start:\n{log.read_text()}")
