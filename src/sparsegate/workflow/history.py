"""The versions of a registered model: what was found, what it cost, who moved them and why."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from io import StringIO

from sparsegate.contracts import JSON
from sparsegate.errors import EvidenceError, ExitCode
from sparsegate.registry.envelope import unseal
from sparsegate.registry.package import EVIDENCE_TYPE
from sparsegate.registry.promotion import DELTA_TAG
from sparsegate.registry.versions import StoredVersion, is_quarantined, list_versions, read_events, read_evidence
from sparsegate.reports.model import GateReport
from sparsegate.workflow.versions import EVENT_TYPE


@dataclass(frozen=True)
class VersionRow:
    """One version.

    Args:
        version: Its number.
        aliases: Aliases that name it, and ``quarantined``.
        evidence: ``signed``, ``unsigned``, or why there is none; ``sparsegate verify`` proves it.
        verdict: The verdict, derived from the evidence.
        accuracy: Share of right answers to the evaluation set.
        perplexity: Perplexity of the expected responses; of a generation task only.
        train_seconds: What training took.
        created_at: When it was registered, ISO 8601.
        actor: Who made it.
        triggers: Why its run was started.
        events: Every move of the alias to it: verb, when, actor and reason.
    """

    version: int
    aliases: tuple[str, ...]
    evidence: str
    verdict: str | None
    accuracy: float | None
    perplexity: float | None
    train_seconds: float | None
    created_at: str
    actor: str | None
    triggers: tuple[str, ...]
    events: tuple[JSON, ...]


@dataclass(frozen=True)
class History:
    """All versions of a registered model, the newest first."""

    name: str
    rows: tuple[VersionRow, ...]

    exit_code = ExitCode.PASSED

    def to_json(self) -> dict[str, JSON]:
        return asdict(self)

    def render(self, *, width: int = 120) -> str:
        """Return the table as text."""
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
        generates = any(row.perplexity is not None for row in self.rows)
        for name in ("version", "accuracy", *(["perplexity"] if generates else []), "training"):
            table.add_column(name, justify="right", no_wrap=True)
        for name in ("verdict", "evidence", "when", "who", "what and why"):
            table.add_column(name, overflow="fold")
        for row in self.rows:
            moves = [f"{event['verb']}: {event['reason']}" for event in row.events]
            actors = dict.fromkeys(str(who) for who in (row.actor, *(event["actor"] for event in row.events)) if who)
            what = [*row.aliases, *row.triggers, *moves]
            cells = (
                str(row.version),
                "-" if row.accuracy is None else f"{row.accuracy:.3f}",
                *(["-" if row.perplexity is None else f"{row.perplexity:.3g}"] if generates else []),
                "-" if row.train_seconds is None else f"{row.train_seconds:.0f} s",
                row.verdict or "-",
                row.evidence,
                row.created_at,
                ", ".join(actors) or "-",
                "\n".join(what) or "-",
            )
            table.add_row(*map(Text, cells))
        text = StringIO()
        Console(file=text, width=width, color_system=None, force_terminal=False).print(table)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def history(tracking_uri: str, name: str) -> History:
    """Read the versions of a registered model.

    Raises:
        UsageError: If there is no such registered model.
        RegistryError: If MLflow fails.
    """
    return History(name, tuple(_row(tracking_uri, name, version) for version in list_versions(tracking_uri, name)))


def _row(uri: str, name: str, version: StoredVersion) -> VersionRow:
    marks = ("quarantined",) if is_quarantined(uri, name, version.tags.get(DELTA_TAG, "")) else ()
    status, verdict, evidence = _evidence(uri, name, version.number)
    figures = evidence["models"]["candidate"] if evidence else {}
    created = datetime.fromtimestamp(version.created_ms / 1000, UTC)
    return VersionRow(
        version=version.number,
        aliases=(*version.aliases, *marks),
        evidence=status,
        verdict=verdict,
        accuracy=figures.get("accuracy"),
        perplexity=figures.get("perplexity"),
        train_seconds=evidence["cost"]["train_seconds"] if evidence else None,
        created_at=created.isoformat(timespec="seconds").replace("+00:00", "Z"),
        actor=evidence["actor"] if evidence else None,
        triggers=tuple(evidence.get("triggers", ())) if evidence else (),
        events=_events(uri, version),
    )


def _evidence(uri: str, name: str, number: int) -> tuple[str, str | None, dict[str, JSON] | None]:
    """Return the state of a version's evidence, its verdict, and the evidence itself."""
    try:
        envelope = unseal(read_evidence(uri, name, number), predicate_type=EVIDENCE_TYPE)
    except EvidenceError:
        return "missing or damaged", None, None
    evidence = dict(envelope.statement.predicate)
    return (
        "signed" if envelope.signatures else "UNSIGNED",
        str(GateReport.from_json(evidence["report"]).verdict),
        evidence,
    )


def _events(uri: str, version: StoredVersion) -> tuple[JSON, ...]:
    """Return the records of moves to a version; a run may have made several, and a damaged record says so."""
    found: list[JSON] = []
    for data in read_events(uri, version.run_id):
        try:
            event = dict(unseal(data, predicate_type=EVENT_TYPE).statement.predicate)
        except EvidenceError:
            found.append({"verb": "damaged record", "reason": "it can't be read", "actor": "", "when": ""})
            continue
        if event["to"] == version.number:
            found.append(event)
    return tuple(found)
