"""Who acts, and with which key."""

from __future__ import annotations

import getpass
import os
from pathlib import Path
from typing import TYPE_CHECKING

from sparsegate.config import RegistryConfig
from sparsegate.signing import load_private_key, load_public_key, parse_private_key

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

KEY_VARIABLE = "SPARSEGATE_SIGNING_KEY"
# what CI systems call whoever started the job
_ACTORS = ("SPARSEGATE_ACTOR", "GITHUB_ACTOR", "GITLAB_USER_LOGIN", "BUILD_USER_ID")


def signing_key(registry: RegistryConfig) -> Ed25519PrivateKey | None:
    """Return the key that signs, or None where none is set.

    Raises:
        UsageError: If the key that is set can't be used.
    """
    if registry.signing_key is not None:
        return load_private_key(Path(registry.signing_key))
    text = os.environ.get(KEY_VARIABLE)
    return parse_private_key(text.encode(), named=KEY_VARIABLE) if text else None


def public_key_of(path: Path | None) -> Ed25519PublicKey | None:
    """Return the key that must have signed: a PEM file's, else that of the environment's signing key, else None.

    Raises:
        UsageError: If the key that is set can't be used.
    """
    if path is not None:
        return load_public_key(path)
    private = signing_key(RegistryConfig())
    return None if private is None else private.public_key()


def actor(registry: RegistryConfig) -> str:
    """Return who acts: as configured, else by the environment of CI, else the user of this process."""
    named = registry.actor or next((os.environ[name] for name in _ACTORS if os.environ.get(name)), None)
    if named is not None:
        return named
    try:
        return getpass.getuser()
    except (KeyError, OSError):  # a container's user id need not have a name
        return f"uid {os.getuid()}"
