"""The one report object that every format and the exit code come from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from sparsegate.contracts import JSON, GateResult, Verdict, worst


@dataclass(frozen=True)
class GateReport:
    """What the gates said about one subject.

    Args:
        subject: What was judged, such as a run key or model name.
        policy_name: Name of the policy.
        policy_sha256: Digest of the policy.
        planned: Gates that had to answer, in order.
        results: What they answered.
        created_at: Time as ISO 8601 text.
    """

    subject: str
    policy_name: str
    policy_sha256: str
    planned: tuple[str, ...]
    results: tuple[GateResult, ...]
    created_at: str

    @property
    def problems(self) -> tuple[str, ...]:
        """Say how the results differ from the plan; empty if each planned gate answered once and no other did."""
        answered = [result.gate for result in self.results]
        missing = [f"gate '{name}' was planned and did not answer" for name in self.planned if name not in answered]
        foreign = [f"gate '{name}' answered and was not planned" for name in answered if name not in self.planned]
        doubled = [f"gate '{name}' stands twice" for name in sorted({n for n in answered if answered.count(n) > 1})]
        nothing = [] if self.planned else ["no gate was planned"]
        return tuple(missing + foreign + doubled + nothing)

    @property
    def verdict(self) -> Verdict:
        """The worst verdict; ERROR if the results are not exactly those planned."""
        return Verdict.ERROR if self.problems else worst([result.verdict for result in self.results])

    def to_json(self) -> dict[str, JSON]:
        return {
            "subject": self.subject,
            "policy_name": self.policy_name,
            "policy_sha256": self.policy_sha256,
            "planned": list(self.planned),
            "results": [result.to_json() for result in self.results],
            "created_at": self.created_at,
            "verdict": self.verdict.value,
            "problems": list(self.problems),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, JSON]) -> GateReport:
        """Rebuild a report; every verdict is derived again.

        Raises:
            ValueError: If a verdict written differs from the one derived.
        """
        report = cls(
            subject=data["subject"],
            policy_name=data["policy_name"],
            policy_sha256=data["policy_sha256"],
            planned=tuple(data["planned"]),
            results=tuple(GateResult.from_json(result) for result in data["results"]),
            created_at=data["created_at"],
        )
        if report.verdict.value != data["verdict"]:
            raise ValueError(f"the report says {data['verdict']} but its results say {report.verdict}")
        return report
