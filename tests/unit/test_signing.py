from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from sparsegate.errors import UsageError
from sparsegate.files import sha256_bytes
from sparsegate.signing import key_id, load_private_key, load_public_key, sign, verify

# RFC 8032, section 7.1, test 2
SECRET = bytes.fromhex("4ccd089b28ff96da9db6c346ec114e0f5b8a319f35aba624da8cf6ed4fb8a6fb")
SIGNATURE = bytes.fromhex(
    "92a009a9f0d4cab8720e820b5f642540a2b27b5416503f8fb3762223ebdb69da"
    "085ac1e43e15996e458f3613d0f11d8c387b2eaeb4302aeeb00d291612bb0c00"
)


@pytest.fixture
def key_file(tmp_path: Path) -> Path:
    key = Ed25519PrivateKey.from_private_bytes(SECRET)
    (tmp_path / "key.pem").write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    public = key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    (tmp_path / "key.pub.pem").write_bytes(public)
    return tmp_path / "key.pem"


def test_signatures_are_those_of_the_rfc_and_verify_with_the_public_key_alone(key_file: Path) -> None:
    key, public = load_private_key(key_file), load_public_key(key_file.with_name("key.pub.pem"))
    assert sign(key, b"\x72") == SIGNATURE
    assert verify(public, b"\x72", SIGNATURE)
    assert not verify(public, b"\x73", SIGNATURE)
    assert not verify(public, b"\x72", SIGNATURE[:-1])
    assert not verify(public, b"\x72", b"")


def test_the_key_id_is_the_digest_of_the_der_form(key_file: Path) -> None:
    public = load_public_key(key_file.with_name("key.pub.pem"))
    der = public.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    assert key_id(public) == key_id(load_private_key(key_file).public_key()) == sha256_bytes(der)


def test_what_is_no_such_key_is_refused_without_showing_it(key_file: Path, tmp_path: Path) -> None:
    key = load_private_key(key_file)
    locked = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"hunter2"))
    other = X25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    public = key_file.with_name("key.pub.pem").read_bytes()
    for content in (b"hunter2", locked, other, public):
        (tmp_path / "bad.pem").write_bytes(content)
        with pytest.raises(UsageError, match=r"bad\.pem holds no unencrypted Ed25519 private key") as caught:
            load_private_key(tmp_path / "bad.pem")
        assert "hunter2" not in str(caught.value)
    with pytest.raises(UsageError, match="holds no Ed25519 public key"):
        load_public_key(key_file)
    with pytest.raises(UsageError, match=r"none\.pem can't be read: No such file"):
        load_private_key(tmp_path / "none.pem")
