"""Ed25519 keys and signatures, with keys as PEM files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from sparsegate.errors import UsageError
from sparsegate.files import sha256_bytes

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey


def load_private_key(path: Path) -> Ed25519PrivateKey:
    """Read an unencrypted private key, as ``openssl genpkey -algorithm ed25519 -out FILE`` writes it.

    Raises:
        UsageError: If the file can't be read or holds no such key.
    """
    return parse_private_key(_read(path), named=str(path))


def parse_private_key(pem: bytes, *, named: str) -> Ed25519PrivateKey:
    """Return the private key in PEM text.

    Args:
        pem: The text.
        named: Where it comes from, for messages; the text itself is never shown.

    Raises:
        UsageError: If it is no unencrypted Ed25519 private key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    from cryptography.hazmat.primitives.serialization import load_pem_private_key

    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise UsageError(
            f"{named} holds no unencrypted Ed25519 private key in PEM form;"
            " make one with 'openssl genpkey -algorithm ed25519 -out FILE'"
        )
    return key


def load_public_key(path: Path) -> Ed25519PublicKey:
    """Read a public key, as ``openssl pkey -in PRIVATE -pubout -out FILE`` writes it.

    Raises:
        UsageError: If the file can't be read or holds no such key.
    """
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.hazmat.primitives.serialization import load_pem_public_key

    try:
        key = load_pem_public_key(_read(path))
    except (ValueError, UnsupportedAlgorithm):
        key = None
    if not isinstance(key, Ed25519PublicKey):
        raise UsageError(
            f"{path} holds no Ed25519 public key in PEM form;"
            " write it with 'openssl pkey -in PRIVATE -pubout -out FILE'"
        )
    return key


def sign(key: Ed25519PrivateKey, payload: bytes) -> bytes:
    """Return the signature of 64 bytes."""
    return key.sign(payload)


def verify(key: Ed25519PublicKey, payload: bytes, signature: bytes) -> bool:
    """Say whether a signature over the payload was made with the key's private part."""
    from cryptography.exceptions import InvalidSignature

    try:
        key.verify(signature, payload)
    except InvalidSignature:
        return False
    return True


def key_id(public_key: Ed25519PublicKey) -> str:
    """Return the sha256 of the public key's DER form, hex."""
    from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

    return sha256_bytes(public_key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo))


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"key file {path} can't be read: {error.strerror}") from None
