"""Requests to addresses that clients name: webhooks, and pictures where that is allowed.

A name is resolved once, what it stands for is checked, and the connection goes to the very address that was checked: a
name that means something else a moment later gains nothing. Redirects are not followed. Private, loopback, link-local
and otherwise special addresses are refused unless the operator allows them.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

import httpx

from .errors import JobsError

_LIMIT_S = 15.0


class ForbiddenError(JobsError):
    """An address that nothing is sent to; the text says why."""


class Outside:
    """A client for addresses that others choose.

    Args:
        private: whether private addresses and plain HTTP are allowed.
    """

    def __init__(self, *, private: bool) -> None:
        self._private = private
        self._client = httpx.AsyncClient(timeout=httpx.Timeout(10), follow_redirects=False, trust_env=False)

    async def close(self) -> None:
        await self._client.aclose()

    def check(self, url: str, hosts: Sequence[str]) -> str:
        """Refuse an address by its text alone; returns its host.

        Args:
            hosts: that are allowed; none: all.

        Raises:
            ForbiddenError: it is no address, or not an allowed one.
        """
        try:
            parts = urlsplit(url)
            host, _ = parts.hostname or "", parts.port
        except ValueError as error:
            raise ForbiddenError("not an address such as https://example.org/path") from error
        schemes = ("https", "http") if self._private else ("https",)
        if parts.scheme not in schemes or not host or parts.username or parts.password or len(url) > 2000:
            raise ForbiddenError(f"not an address that begins with {' or '.join(schemes)}:// and a host")
        if hosts and host.lower() not in {one.lower() for one in hosts}:
            raise ForbiddenError(f"{host} is not one of the hosts that are allowed")
        try:
            literal = ipaddress.ip_address(host)
        except ValueError:
            return host
        self._check_address(host, literal)
        return host

    async def send(
        self,
        method: str,
        url: str,
        hosts: Sequence[str],
        *,
        content: bytes | None,
        headers: Mapping[str, str],
        most: int,
    ) -> tuple[int, bytes]:
        """Send a request and return the answer's status and body.

        Args:
            most: bytes of the body that are read; a longer one is cut there.

        Raises:
            ForbiddenError: the address is not allowed, or stands for one that is not.
            TimeoutError, httpx.HTTPError, OSError: it could not be reached.
        """
        host = self.check(url, hosts)
        async with asyncio.timeout(_LIMIT_S):
            parts = urlsplit(url)
            port = parts.port or (443 if parts.scheme == "https" else 80)
            address = await self._resolve(host, port)
            # To the address; the name goes into the header, and into what the certificate is checked against.
            target = httpx.URL(url).copy_with(host=address)
            shown = host if parts.port is None else f"{host}:{port}"
            sent = {**headers, "Host": shown}
            options = {"sni_hostname": host}
            async with self._client.stream(method, target, content=content, headers=sent, extensions=options) as answer:
                body = bytearray()
                async for chunk in answer.aiter_bytes():
                    body += chunk
                    if len(body) > most:
                        break
                return answer.status_code, bytes(body[: most + 1])

    async def _resolve(self, host: str, port: int) -> str:
        found = await asyncio.get_running_loop().getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = [str(one[4][0]) for one in found]
        for address in addresses:
            self._check_address(host, ipaddress.ip_address(address.partition("%")[0]))
        return addresses[0]

    def _check_address(self, host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
        inner = getattr(address, "ipv4_mapped", None) or getattr(address, "sixtofour", None) or address
        if not self._private and not (inner.is_global and address.is_global and not address.is_multicast):
            raise ForbiddenError(f"{host} is a private or special address")
