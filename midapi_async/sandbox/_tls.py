"""A certificate that is made at start, for programs that insist on https."""

import os
import shutil
import ssl
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import final

_EVERYWHERE = frozenset({"", "0.0.0.0", "::"})  # noqa: S104  names of no host, not listened on
_LOCAL = ("localhost", "127.0.0.1", "::1")


@final
class Certificate:
    """A server's certificate, in an `ssl.SSLContext`, and the file of the CA that signed it.

    The CA's key is in memory only and is dropped at once: whoever trusts the file trusts this
    one certificate.
    """

    def __init__(self, hosts: Iterable[str], ca_file: Path | None) -> None:
        """Make a certificate for these hosts and for this machine's own names.

        Args:
            hosts: names and addresses; those that mean "every address" are left out.
            ca_file: where to write the CA's certificate; None makes a folder of its own for it,
                which `remove` removes.

        Raises:
            ImportError: trustme is missing; the text says how to install it.
            ValueError: no certificate can be made for a host; the text names it.
            OSError: the file cannot be written; the text names it.
        """
        try:
            import trustme
        except ImportError:
            message = 'tls needs trustme: pip install "midapi-async[tls]"'
            raise ImportError(message) from None
        ca = trustme.CA(organization_name="midapi sandbox")
        names = dict.fromkeys((*_LOCAL, *(host for host in hosts if host not in _EVERYWHERE)))
        try:
            certificate = ca.issue_cert(*names)
        except ValueError as error:  # an IDNA error is one
            message = f"no certificate can be made for {', '.join(names)}: {error}"
            raise ValueError(message) from None
        self.context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        certificate.configure_cert(self.context)
        self._folder = None if ca_file else Path(tempfile.mkdtemp(prefix="midapi-sandbox-"))
        self.ca_file = ca_file or Path(str(self._folder), "ca.pem")
        try:
            self.ca_file.write_bytes(ca.cert_pem.bytes())
        except OSError as error:
            message = f"cannot write {os.fspath(self.ca_file)!r}: {error.strerror or error}"
            raise OSError(error.errno, message) from error

    def remove(self) -> None:
        """Remove the folder that was made for the CA's certificate, if one was."""
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
