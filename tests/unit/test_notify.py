"""The webhook, against a real server on this machine."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from sparsegate.config import NotifyConfig, RunConfig, check_rules
from sparsegate.errors import ConfigError, ExitCode, LockedError
from sparsegate.workflow import notify
from sparsegate.workflow.notify import announced
from sparsegate.workflow.outcome import Outcome

OUTCOME = Outcome("registered: tickets version 3 is now champion", ExitCode.PASSED, Path("runs/1a2b"), {}, version=3)


@pytest.fixture
def webhook(monkeypatch):
    """A server that answers with the statuses it is given, in turn, and keeps what it was sent."""
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.setattr(notify, "_PAUSE_S", 0.0)
    received, statuses = [], []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.path, self.headers["Content-Type"], json.loads(body)))
            status = statuses.pop(0) if statuses else 200
            self.send_response(status)
            if status == 302:
                self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def do_GET(self):
            received.append((self.path, "GET", None))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *arguments):
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    server.url = f"http://127.0.0.1:{server.server_port}/hook/s3cret"
    server.received, server.statuses = received, statuses
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_the_outcome_is_posted_as_json(webhook):
    assert announced(NotifyConfig(url=webhook.url), lambda: OUTCOME) is OUTCOME
    assert webhook.received == [("/hook/s3cret", "application/json", OUTCOME.to_json())]


def test_the_url_may_stand_in_the_environment(webhook, monkeypatch):
    monkeypatch.setenv("HOOK", webhook.url)
    announced(NotifyConfig(url="env:HOOK"), lambda: OUTCOME)
    assert len(webhook.received) == 1


def test_a_run_that_ends_in_an_error_is_announced_and_still_ends_in_it(webhook):
    def work():
        raise LockedError("another run is at work")

    with pytest.raises(LockedError):
        announced(NotifyConfig(url=webhook.url), work)
    assert webhook.received[0][2] == {"message": "another run is at work", "exit_code": 30}


def test_an_unexpected_error_is_announced_without_its_text(webhook):
    def work():
        raise RuntimeError("password=hunter2")

    with pytest.raises(RuntimeError):
        announced(NotifyConfig(url=webhook.url), work)
    assert webhook.received[0][2] == {"message": "unexpected RuntimeError, see the log", "exit_code": 20}


def test_a_webhook_that_fails_once_is_asked_again(webhook, caplog):
    webhook.statuses += [503]
    announced(NotifyConfig(url=webhook.url), lambda: OUTCOME)
    assert len(webhook.received) == 2
    assert caplog.records == []


def test_a_webhook_that_fails_twice_is_a_warning_that_keeps_the_secret(webhook, caplog):
    webhook.statuses += [503, 500]
    assert announced(NotifyConfig(url=webhook.url), lambda: OUTCOME) is OUTCOME
    assert len(webhook.received) == 2
    assert [record.getMessage() for record in caplog.records] == [
        "the webhook at 127.0.0.1 was not reached: HTTP 500, tried twice"
    ]


def test_a_redirect_is_not_followed(webhook, caplog):
    webhook.statuses += [302, 302]
    announced(NotifyConfig(url=webhook.url), lambda: OUTCOME)
    assert [path for path, _, _ in webhook.received] == ["/hook/s3cret"] * 2
    assert "HTTP 302" in caplog.text


def test_a_webhook_that_is_down_is_a_warning(webhook, caplog):
    webhook.server_close()
    assert announced(NotifyConfig(url=webhook.url, timeout_s=0.5), lambda: OUTCOME) is OUTCOME
    assert "the webhook at 127.0.0.1 was not reached: ConnectionRefusedError" in caplog.text
    assert "s3cret" not in caplog.text


def test_without_a_url_nothing_is_posted(webhook):
    assert announced(NotifyConfig(), lambda: OUTCOME) is OUTCOME
    assert webhook.received == []


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("ftp://host/hook", "must be an http:// or https:// URL"),
        ("hooks.example.org", "must be an http:// or https:// URL"),
        ("https://host:99999/", "must be an http:// or https:// URL"),
        ("https://host/a b", "must be an http:// or https:// URL"),
        ("https://me:hunter2@host/", "must not hold a user or password"),
    ],
)
def test_a_url_that_can_not_be_used_is_refused_without_repeating_it(url, problem):
    with pytest.raises(ConfigError, match=problem) as refused:
        check_rules(RunConfig(notify=NotifyConfig(url=url)))
    assert url not in str(refused.value)


@pytest.mark.parametrize("value", [None, "file:///etc/passwd"])
def test_a_variable_that_holds_no_url_ends_before_the_work(monkeypatch, value):
    if value is not None:
        monkeypatch.setenv("HOOK", value)
    else:
        monkeypatch.delenv("HOOK", raising=False)
    with pytest.raises(ConfigError, match="HOOK"):
        announced(NotifyConfig(url="env:HOOK"), lambda: pytest.fail("the work was begun"))
