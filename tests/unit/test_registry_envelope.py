from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256

from sparsegate.errors import EvidenceError
from sparsegate.registry.envelope import Statement, pae, seal, unseal

STATEMENT = Statement({"a.txt": "1" * 64, "b.txt": "2" * 64}, "urn:test", {"n": 1})


def test_the_signed_bytes_are_those_of_the_dsse_test_vector() -> None:
    # github.com/secure-systems-lab/dsse, implementation/signing_spec.py and protocol.md
    x = 46950820868899156662930047687818585632848591499744589407958293238635476079160
    y = 5640078356564379163099075877009565129882514886557779369047442380624545832820
    signature = base64.b64decode(
        "A3JqsQGtVsJ2O2xqrI5IcnXip5GToJ3F+FnZ+O88SjtR6rDAajabZKciJTfUiHqJPcIAriEGAHTVeCUjW2JIZA=="
    )
    halves = (int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big"))
    key = ec.EllipticCurvePublicNumbers(x, y, ec.SECP256R1()).public_key()
    signed = pae("http://example.com/HelloWorld", b"hello world")
    key.verify(encode_dss_signature(*halves), signed, ec.ECDSA(SHA256()))  # raises if it is another text


def test_lengths_are_counted_in_bytes() -> None:
    assert pae("ä", b"") == b"DSSEv1 2 \xc3\xa4 0 "


def test_a_sealed_statement_is_an_in_toto_statement_and_reads_back() -> None:
    text = seal(STATEMENT, Ed25519PrivateKey.generate())
    payload = json.loads(base64.b64decode(json.loads(text)["payload"]))
    assert payload == {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [
            {"name": "a.txt", "digest": {"sha256": "1" * 64}},
            {"name": "b.txt", "digest": {"sha256": "2" * 64}},
        ],
        "predicateType": "urn:test",
        "predicate": {"n": 1},
    }
    assert unseal(text.encode(), predicate_type="urn:test").statement == STATEMENT


def test_only_the_signer_counts_whatever_the_key_id_claims() -> None:
    ours, other = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
    envelope = unseal(seal(STATEMENT, ours).encode(), predicate_type="urn:test")
    assert envelope.is_signed_by(ours.public_key())
    assert not envelope.is_signed_by(other.public_key())
    outer = json.loads(seal(STATEMENT, other))
    outer["signatures"][0]["keyid"] = envelope.signatures[0][0]
    claimed = unseal(json.dumps(outer).encode(), predicate_type="urn:test")
    assert not claimed.is_signed_by(ours.public_key())
    unsigned = unseal(seal(STATEMENT, None).encode(), predicate_type="urn:test")
    assert (unsigned.signatures, unsigned.is_signed_by(ours.public_key())) == ((), False)


@pytest.mark.parametrize(
    "change",
    [
        lambda outer: b"",
        lambda outer: b"[]",
        lambda outer: b"\xff",
        lambda outer: json.dumps({**outer, "payload": "***"}).encode(),
        lambda outer: json.dumps({**outer, "payloadType": "text/plain"}).encode(),
        lambda outer: json.dumps({**outer, "signatures": [{"sig": "AA=="}]}).encode(),
        lambda outer: json.dumps({**outer, "payload": base64.b64encode(b'{"a":1,"a":2}').decode()}).encode(),
    ],
)
def test_what_is_no_envelope_of_this_form_is_refused(change) -> None:  # type: ignore[no-untyped-def]
    outer = json.loads(seal(STATEMENT, None))
    with pytest.raises(EvidenceError, match="not a sealed statement of urn:test"):
        unseal(change(outer), predicate_type="urn:test")


def test_a_statement_of_another_kind_is_refused() -> None:
    with pytest.raises(EvidenceError, match="urn:other"):
        unseal(seal(STATEMENT, None).encode(), predicate_type="urn:other")
