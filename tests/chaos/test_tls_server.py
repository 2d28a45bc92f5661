"""A tracking server that speaks TLS with a certificate of its own: it is believed only where that is said."""

from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from nights import Project
from servers import mlflow_server

pytestmark = [
    pytest.mark.slow,
    # from MLflow, when the tests ask the registry
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory):
    """A file with a certificate for 127.0.0.1 that nobody has signed, and its key."""
    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([])
    begins = datetime.now(UTC) - timedelta(hours=1)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address("127.0.0.1"))]), critical=True)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    key_text = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    path = tmp_path_factory.mktemp("certificate") / "server.pem"
    path.write_bytes(made.public_bytes(pem) + key_text)
    return path


@pytest.fixture(scope="module")
def uri(tmp_path_factory, certificate):
    with mlflow_server(tmp_path_factory.mktemp("tls"), certificate=certificate) as uri:
        yield uri


def test_an_unknown_certificate_ends_the_command_before_anything_is_begun(uri, processes, tmp_path):
    impatient = (("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0"),)
    project = Project(tmp_path / "project", processes, uri, impatient)
    ended = project.retrain("night")
    assert (ended.code, ended.result) == (2, None)
    assert "certificate" in ended.said
    assert not (project.folder / "runs").exists()


def test_a_night_with_the_certificate_that_mlflow_is_told_to_trust_ends_well(
    uri, certificate, processes, tmp_path, monkeypatch
):
    trusted = ("MLFLOW_TRACKING_SERVER_CERT_PATH", str(certificate))
    monkeypatch.setenv(*trusted)
    project = Project(tmp_path / "project", processes, uri, (trusted,))
    assert project.retrain("night").code == 0
    assert project.verify()["verified"]
    assert project.state()["aliases"] == {"champion": 1}
