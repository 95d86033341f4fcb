"""doctor names what is wrong, and says what to do."""

from __future__ import annotations

import datetime
import ssl
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from socket import create_server

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from broker.archive.signing import load_or_make_signer
from broker.command import machine
from broker.command.doctor import ask_providers
from broker.command.findings import Finding
from tests.archive.conftest import new_archive
from tests.archive.postgres import USER, connect
from tests.command.conftest import Ended

Doctor = Callable[..., str]


@pytest.fixture
def doctor(lastevent: Callable[..., Ended]) -> Doctor:
    return lambda **settings: lastevent("doctor", **settings).stdout.decode()


def bad(said: str) -> list[str]:
    return [line.removeprefix("BAD  ") for line in said.splitlines() if line.startswith("BAD")]


def test_what_lies_beside_an_archive_is_looked_at(doctor: Doctor, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/archive.db"
    (tmp_path / "file").touch()
    assert "the archive holds 0 seals" in doctor(LASTEVENT_ARCHIVE_URL=url)
    (tmp_path / "seal-key.pem").write_text("no key")
    assert any("seal-key.pem" in line for line in bad(doctor(LASTEVENT_ARCHIVE_URL=url)))
    (tmp_path / "seal-key.pem").unlink()
    load_or_make_signer(tmp_path / "seal-key.pem")
    inside_a_file = str(tmp_path / "file" / "heads.json")
    found = bad(doctor(LASTEVENT_ARCHIVE_URL=url, LASTEVENT_SEAL_HEADS=inside_a_file))
    assert any(inside_a_file in line and "cannot be written" in line for line in found)


@pytest.mark.processes
@pytest.mark.parametrize("archive_url", ["postgresql"])
def test_a_database_says_what_it_refuses_and_who_may_only_read(
    doctor: Doctor, request: pytest.FixtureRequest, postgres: str, tmp_path: Path, archive_url: str
) -> None:
    request.param = archive_url
    url = new_archive(request, tmp_path)
    assert "the archive may be written from here" in doctor(LASTEVENT_ARCHIVE_URL=url)
    name = url.removeprefix("postgresql:///").partition("?")[0]
    with connect(postgres, name) as connection:
        connection.execute("CREATE ROLE doctors_reader LOGIN")
        connection.execute("GRANT SELECT ON ALL TABLES IN SCHEMA public TO doctors_reader")
        only_reads = doctor(LASTEVENT_ARCHIVE_URL=url.replace(f"user={USER}", "user=doctors_reader"))
        assert "right for servers, not for workers" in only_reads
        connection.execute(f"ALTER DATABASE {name} SET default_transaction_read_only = on")
        assert any("standby" in line for line in bad(doctor(LASTEVENT_ARCHIVE_URL=url)))
        nobody = doctor(LASTEVENT_ARCHIVE_URL=url.replace(f"user={USER}", "user=nobody_here"))
        assert any('role "nobody_here" does not exist' in line for line in bad(nobody))
        connection.execute(f"ALTER DATABASE {name} RESET default_transaction_read_only")
        connection.execute("DROP OWNED BY doctors_reader")
        connection.execute("DROP ROLE doctors_reader")


OWN = """
[provider.vllm]
kind = "openai-chat"
base_url = "http://127.0.0.1:1/v1"
api_key_env = "VLLM_KEY"
"""


def test_each_provider_that_is_set_up_is_said_with_what_does_it_and_no_key(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text(OWN)
    profile = tmp_path / ".config" / "anthropic" / "configs" / "default.json"
    profile.parent.mkdir(parents=True)
    profile.write_text("{}")
    said = doctor(
        HOME=str(tmp_path),
        LASTEVENT_MODELS_FILE=str(tmp_path / "models.toml"),
        OPENAI_API_KEY="sk-secret",
        GOOGLE_GENAI_USE_VERTEXAI="false",
    )
    lines = [line.removeprefix("ok   ") for line in said.splitlines()]
    for line in (
        *("openai: OPENAI_API_KEY is set", "openai-chat: OPENAI_API_KEY is set"),
        *("vllm: LASTEVENT_MODELS_FILE has it", f"anthropic: {profile} is there"),
    ):
        assert line in lines
    assert "gemini" not in said
    assert "secret" not in said


def test_without_any_provider_it_says_who_answers_then(doctor: Doctor, tmp_path: Path) -> None:
    nobody = doctor(HOME=str(tmp_path))
    assert "no model provider is set up: `lastevent up` answers by the stand-in" in nobody
    assert "`lastevent work` refuses to start" in nobody
    standin = doctor(HOME=str(tmp_path), LASTEVENT_STANDIN="1", GEMINI_API_KEY="x")
    assert "not a model, answers in the place of anthropic, openai, openai-chat\n" in standin


def test_a_default_model_of_a_provider_that_is_not_set_up_is_said(doctor: Doctor, tmp_path: Path) -> None:
    [line] = [line for line in bad(doctor(HOME=str(tmp_path), OPENAI_API_KEY="x")) if "default model" in line]
    assert "anthropic is not set up" in line
    assert "LASTEVENT_DEFAULT_MODEL" in line
    said = doctor(HOME=str(tmp_path), OPENAI_API_KEY="x", LASTEVENT_DEFAULT_MODEL="openai/gpt-5-mini")
    assert "default model" not in said


def test_a_models_file_that_cannot_be_read_is_said(doctor: Doctor, tmp_path: Path) -> None:
    (tmp_path / "models.toml").write_text("provider = secret")
    for path, why in (("nowhere", "No such file"), ("models.toml", "is no TOML")):
        [line] = [line for line in bad(doctor(LASTEVENT_MODELS_FILE=str(tmp_path / path))) if "MODELS_FILE" in line]
        assert why in line
        assert "secret" not in line


def test_what_asks_the_providers_is_read_line_by_line() -> None:
    def asked(program: str) -> list[Finding]:
        return list(ask_providers([sys.executable, "-S", "-c", program]))

    answers = """
print('{"provider":"openai","ok":true,"detail":"it takes the key"}')
print("a library's warning")
print('{"provider":"gemini","ok":false,"detail":"The key is refused."}')
"""
    assert asked(answers) == [
        Finding(True, "openai: it takes the key", "it takes the key"),
        Finding(False, "gemini cannot be used", "The key is refused."),
    ]
    [nobody] = asked("")
    assert nobody.ok
    [died] = asked("raise SystemExit('LASTEVENT_MODELS_FILE: it is no TOML')")
    assert died == Finding(False, "the providers could not be asked", "LASTEVENT_MODELS_FILE: it is no TOML")


def test_a_provider_that_is_not_there_is_said_when_it_is_asked(lastevent: Callable[..., Ended], tmp_path: Path) -> None:
    away = {"HOME": str(tmp_path), "ANTHROPIC_API_KEY": "sk-secret", "ANTHROPIC_BASE_URL": "http://127.0.0.1:1"}
    ended = lastevent("doctor", "--providers", **away)
    assert any("anthropic cannot be used" in line for line in bad(ended.stdout.decode()))
    assert b"secret" not in ended.stdout + ended.stderr


def test_a_disk_that_is_nearly_full_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    [found] = machine.data_directory()
    assert found.ok, "this machine's"
    monkeypatch.setattr(machine, "LITTLE_DISK", 2**80)
    [found] = machine.data_directory()
    assert not found.ok
    assert "Free some disk space" in found.advice


def test_clocks_that_differ_are_said() -> None:
    now_s = datetime.datetime.now().timestamp()
    assert machine.clock(now_s).ok
    assert not machine.clock(now_s - 60).ok


@pytest.mark.parametrize(
    ("days", "host", "named"), [(-1, "localhost", "has expired"), (1, "elsewhere.example", "mismatch")]
)
def test_a_certificate_that_is_not_accepted_is_said(
    doctor: Doctor, tmp_path: Path, days: int, host: str, named: str
) -> None:
    with _tls_server(tmp_path, days, host) as port:
        said = doctor(LASTEVENT_REDIS_URL=f"rediss://localhost:{port}/0?ssl_ca_certs={tmp_path}/certificate.pem")
    [line] = [line for line in bad(said) if "TLS with Redis" in line]
    assert named in line


@contextmanager
def _tls_server(folder: Path, days: int, host: str) -> Iterator[int]:
    """The port of a server that has a certificate of its own for that host, valid for so many days."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, host)])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=9))
        .not_valid_after(now + datetime.timedelta(days=days))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    unencrypted = serialization.NoEncryption()
    (folder / "key.pem").write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, unencrypted)
    )
    (folder / "certificate.pem").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "certificate.pem", folder / "key.pem")
    with create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            with suppress(OSError):
                while True:
                    connection, _ = listener.accept()
                    with suppress(OSError), context.wrap_socket(connection, server_side=True) as tls:
                        tls.recv(1)

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield int(listener.getsockname()[1])
        finally:
            listener.shutdown(2)
            thread.join()
