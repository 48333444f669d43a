"""What answers on a wrong address: servers of TLS with certificates of every kind, and servers that are no node.

Certificates are made with the `openssl` program, once for a run: a test of that part needs it.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

NAMES = "DNS:localhost,IP:127.0.0.1"

Talk = Callable[[socket.socket], None]
"""What a server does with a connection; it is closed afterwards."""


class Authority:
    """An authority of certificates of our own, that no system trusts. `file` is its certificate."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.file = directory / "ca.pem"
        self._openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", "ca.key", "-out", "ca.pem", "-days", "30", "-subj", "/CN=an authority of tests"),
            *("-addext", "keyUsage=critical,keyCertSign,cRLSign"),  # Python 3.13 asks for it
        )

    def context(self, name: str, *, names: str = NAMES, days: int = 30) -> ssl.SSLContext:
        """A server's side of TLS, with a certificate of this authority for `names`."""
        (self._directory / f"{name}.ext").write_text(
            f"subjectAltName={names}\nauthorityKeyIdentifier=keyid\n"
        )
        self._openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"),
            *("-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", "/CN=a node of tests"),
        )
        self._openssl(
            *("x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-days", str(days), "-extfile", f"{name}.ext", "-out", f"{name}.pem"),
        )
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self._directory / f"{name}.pem", self._directory / f"{name}.key")
        return context

    def _openssl(self, *arguments: str) -> None:
        subprocess.run(["openssl", *arguments], cwd=self._directory, check=True, capture_output=True)


@contextmanager
def listening(talk: Talk, *, tls: ssl.SSLContext | None = None, port: int = 0) -> Iterator[int]:
    """Serves in threads until the end of the block; gives the port."""
    with socket.create_server(("127.0.0.1", port)) as listener:
        stopping = threading.Event()

        def serve() -> None:
            while True:
                sock, _ = listener.accept()
                if stopping.is_set():
                    sock.close()
                    return
                threading.Thread(target=_talk, args=(sock, talk, tls), daemon=True).start()

        thread = threading.Thread(target=serve)
        thread.start()
        port = listener.getsockname()[1]
        try:
            yield port
        finally:
            stopping.set()
            with contextlib.suppress(OSError):
                socket.create_connection(("127.0.0.1", port)).close()
            thread.join()


def _talk(sock: socket.socket, talk: Talk, tls: ssl.SSLContext | None) -> None:
    with contextlib.suppress(OSError), sock:
        sock.settimeout(20)
        if tls is None:
            talk(sock)
        else:
            with tls.wrap_socket(sock, server_side=True) as wrapped:
                talk(wrapped)


def says(answer: bytes) -> Talk:
    """Reads a little, gives this answer, and closes."""

    def talk(sock: socket.socket) -> None:
        sock.recv(65_536)
        sock.sendall(answer)
        # Else the answer may be lost with what was not read.
        sock.shutdown(socket.SHUT_WR)
        while sock.recv(65_536):
            pass

    return talk


def http_answer(status: int, body: bytes, content_type: str = "text/html", *more: str) -> bytes:
    """An answer in HTTP."""
    headers = [f"Content-Type: {content_type}", f"Content-Length: {len(body)}", "Connection: close", *more]
    return "\r\n".join([f"HTTP/1.1 {status} Said", *headers, "", ""]).encode() + body


def relaying(port: int) -> Talk:
    """Passes bytes on to a server on this machine: what a proxy of TLS does."""

    def talk(sock: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", port)) as upstream:
            downwards = threading.Thread(target=_pump, args=(upstream, sock), daemon=True)
            downwards.start()
            _pump(sock, upstream)
            downwards.join()

    return talk


def _pump(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(65_536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
