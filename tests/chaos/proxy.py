"""A proxy in front of a tracking server that fails as networks do: at chosen writes, in chosen ways."""

import http.client
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

_READS = ("search", "get", "list")


class Proxy:
    """Hands requests on to a server, and lets ``fault`` decide what becomes of each write.

    ``fault`` is called with the number of the write, from 0, and its name. It returns ``None`` (nothing goes wrong),
    ``refuse`` (HTTP 500; the server never sees it), ``drop`` (the connection ends; the server never sees it), ``lose``
    (the server does it, and the connection ends), ``fail`` (the server does it, and the answer is HTTP 500) or
    ``slow``.

    Args:
        server: URI of the server.
    """

    def __init__(self, server):
        self.fault = lambda _number, _name: None
        self.writes = []
        self._target = urlsplit(server).netloc
        self._lock = threading.Lock()
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def handle_any(self):
                proxy.answer(self)

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = handle_any  # noqa: N815

            def log_message(self, *_):
                pass

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.uri = f"http://127.0.0.1:{self._http.server_port}"
        threading.Thread(target=self._http.serve_forever, daemon=True).start()

    def close(self):
        self._http.shutdown()
        self._http.server_close()

    def reset(self, fault=lambda _number, _name: None):
        self.fault, self.writes = fault, []

    def answer(self, request):
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        action = self._action(request)
        if action == "drop":
            return
        if action == "refuse":
            request.send_error(500)
            return
        if action == "slow":
            time.sleep(0.5)
        upstream = http.client.HTTPConnection(self._target, timeout=60)
        headers = {name: value for name, value in request.headers.items() if name.lower() != "host"}
        upstream.request(request.command, request.path, body, {**headers, "Connection": "close"})
        answer = upstream.getresponse()
        content = answer.read()
        upstream.close()
        if action == "lose":
            return
        if action == "fail":
            request.send_error(500)
            return
        request.send_response(answer.status)
        for name, value in answer.getheaders():
            if name.lower() not in {"transfer-encoding", "content-length", "connection", "date", "server"}:
                request.send_header(name, value)
        request.send_header("Content-Length", str(len(content)))
        request.end_headers()
        request.wfile.write(content)

    def _action(self, request):
        folder, name = urlsplit(request.path).path.split("/")[-2:]
        if request.command == "GET" or name.startswith(_READS):
            return None
        with self._lock:
            number = len(self.writes)
            self.writes.append(f"{folder}/{name}")
        return self.fault(number, f"{folder}/{name}")
