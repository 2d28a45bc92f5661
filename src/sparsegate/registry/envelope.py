"""A signed statement: an in-toto Statement v1 in a DSSE envelope.

Source: github.com/in-toto/attestation (spec/v1/statement.md), github.com/secure-systems-lab/dsse (protocol.md).
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sparsegate.contracts import JSON, canonical_json
from sparsegate.errors import EvidenceError
from sparsegate.signing import key_id, sign, verify

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PAYLOAD_TYPE = "application/vnd.in-toto+json"


@dataclass(frozen=True)
class Statement:
    """What is said about some files.

    Args:
        subjects: File name to its sha256, hex.
        predicate_type: URI of the kind of statement.
        predicate: What is said.
    """

    subjects: Mapping[str, str]
    predicate_type: str
    predicate: Mapping[str, JSON]


@dataclass(frozen=True)
class Envelope:
    """A sealed statement.

    Args:
        statement: The statement.
        signed: The bytes that signatures are over.
        signatures: Key id and signature of each signer; empty where nobody signed.
    """

    statement: Statement
    signed: bytes
    signatures: tuple[tuple[str, bytes], ...]

    def is_signed_by(self, key: Ed25519PublicKey) -> bool:
        """Say whether one of the signatures was made with the key; the key ids are no more than hints."""
        return any(verify(key, self.signed, signature) for _, signature in self.signatures)


def pae(payload_type: str, payload: bytes) -> bytes:
    """Return DSSE's pre-authentication encoding: the bytes that are signed.

    Example:
        >>> pae("http://example.com/HelloWorld", b"hello world")
        b'DSSEv1 29 http://example.com/HelloWorld 11 hello world'
    """
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


def seal(statement: Statement, key: Ed25519PrivateKey | None) -> str:
    """Return the envelope of a statement as JSON text; without a key it has no signature."""
    content = {
        "_type": STATEMENT_TYPE,
        "subject": [
            {"name": name, "digest": {"sha256": digest}} for name, digest in sorted(statement.subjects.items())
        ],
        "predicateType": statement.predicate_type,
        "predicate": statement.predicate,
    }
    payload = canonical_json(content).encode()
    signatures = []
    if key is not None:
        signature = base64.b64encode(sign(key, pae(PAYLOAD_TYPE, payload))).decode()
        signatures.append({"keyid": key_id(key.public_key()), "sig": signature})
    envelope = {"payload": base64.b64encode(payload).decode(), "payloadType": PAYLOAD_TYPE, "signatures": signatures}
    return canonical_json(envelope) + "\n"


def unseal(data: bytes, *, predicate_type: str) -> Envelope:
    """Read an envelope back; its signatures are not judged here.

    Raises:
        EvidenceError: If it is no envelope of such a statement, or not in the one form that :func:`seal` writes.
    """
    try:
        outer = json.loads(data)
        payload = base64.b64decode(outer["payload"], validate=True)
        signatures = tuple(
            (str(entry["keyid"]), base64.b64decode(entry["sig"], validate=True)) for entry in outer["signatures"]
        )
        inner = json.loads(payload)
        # the one form of a value: no key stands twice, nothing hides between the values
        if outer["payloadType"] != PAYLOAD_TYPE or canonical_json(inner).encode() != payload:
            raise ValueError("the payload is not canonical in-toto JSON")
        if inner["_type"] != STATEMENT_TYPE or inner["predicateType"] != predicate_type:
            raise ValueError(f"it states {inner['_type']}, {inner['predicateType']}")
        subjects = {str(entry["name"]): str(entry["digest"]["sha256"]) for entry in inner["subject"]}
        predicate = inner["predicate"]
        if len(subjects) != len(inner["subject"]) or not isinstance(predicate, dict):
            raise ValueError("a subject stands twice, or the predicate is no object")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise EvidenceError(f"not a sealed statement of {predicate_type}: {type(error).__name__}: {error}") from None
    return Envelope(Statement(subjects, predicate_type, predicate), pae(PAYLOAD_TYPE, payload), signatures)
