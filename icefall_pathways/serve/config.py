"""Options of the server."""

import ssl
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import tyro

from icefall_pathways.ranges import Port
from icefall_pathways.serve.limits import Limits
from icefall_pathways.transcription.transcriber import AUTO, RecognizerConfig


@dataclass(frozen=True)
class ServeConfig(RecognizerConfig):
    """Options of the server."""

    exp_dir: Annotated[Path, tyro.conf.arg(name="model", aliases=("--exp-dir",))] = Path(
        "pruned_transducer_pathways/exp"
    )
    """Experiment folder of the model."""

    lang: str = AUTO
    """Language of streams that request none, such as fr; auto: identify it."""

    host: str = "127.0.0.1"
    """Address to listen on. 0.0.0.0: all addresses of this machine; use --token-file and TLS then."""

    port: Port = 6006
    """Port to listen on."""

    wyoming_port: Port | None = None
    """Port for clients of the Wyoming protocol, such as Home Assistant. They send no secret and use no TLS."""

    token_file: Path | None = None
    """File with a secret that clients must send: Authorization: Bearer SECRET."""

    tls_certificate: Path | None = None
    """File with the TLS certificate chain (PEM); serves https and wss."""

    tls_key: Path | None = None
    """File with the private key of --tls-certificate (PEM)."""

    allow_origins: str = ""
    """Origins of other web pages that may use the server (CORS), separated by spaces, such as https://example.org;
    empty: none; *: all."""

    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        super().__post_init__()
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("TLS needs two files: pass both --tls-certificate and --tls-key, or none of them")
        if self.wyoming_port is not None and self.token_file is not None:
            raise ValueError(
                "--wyoming-port does not work with --token-file: the Wyoming protocol has no access control; serve its "
                "clients with another process"
            )

    @property
    def origins(self) -> list[str]:
        """`allow_origins` as a list."""
        return self.allow_origins.split()

    def check_tls(self) -> None:
        """Check the TLS files, if there are any.

        Raises:
          ValueError: A file is missing or damaged, or the key does not belong to the certificate.
        """
        if self.tls_certificate is None or self.tls_key is None:
            return
        for option, path in (("--tls-certificate", self.tls_certificate), ("--tls-key", self.tls_key)):
            try:
                path.read_bytes()
            except OSError as error:
                raise ValueError(f"cannot read {option} {path} ({error.strerror or error})") from error
        try:
            context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
            context.load_cert_chain(self.tls_certificate, self.tls_key, password="")  # do not ask on the terminal
        except ssl.SSLError as error:
            raise ValueError(
                f"--tls-certificate {self.tls_certificate} and --tls-key {self.tls_key} do not work ({error.reason}): "
                "expected PEM files, a certificate chain and its private key without a password"
            ) from error

    def read_token(self) -> str | None:
        """Return the secret of `token_file`, or None if there is none.

        Raises:
          ValueError: The file is missing or empty, or has characters that clients cannot send in a header.
        """
        if self.token_file is None:
            return None
        try:
            token = self.token_file.read_text(encoding="utf-8", errors="replace").strip()
        except OSError as error:
            raise ValueError(f"cannot read --token-file {self.token_file} ({error.strerror or error})") from error
        if not token:
            raise ValueError(f"--token-file {self.token_file} is empty: write a secret into it")
        if not (token.isascii() and token.isprintable()):
            raise ValueError(
                f"--token-file {self.token_file} has characters that clients cannot send in a header: expected one "
                "line of ASCII letters, digits and punctuation"
            )
        return token
