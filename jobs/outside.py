"""Requests to addresses that clients name: webhooks, and pictures where that is allowed.

A name is resolved once, what it stands for is checked, and the connection goes to the very address that was checked: a
name that means something else a moment later gains nothing. Redirects are not followed. Private, loopback, link-local
and otherwise special addresses are refused unless the operator allows them.
"""

from __future__ import annotations

import asyncio
import functools
import ipaddress
import re
import socket
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx

from .errors import JobsError

_LIMIT_S = 15.0
_LABEL = "[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?"
_NAME = re.compile(rf"(?:{_LABEL}\.)*{_LABEL}")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")
_GIVEN_OUT = ipaddress.ip_network("2000::/3")  # RFC 4291, and IANA's registry of global unicast addresses


class ForbiddenError(JobsError):
    """An address that nothing is sent to; the text says why."""


class Outside:
    """A client for addresses that others choose.

    Args:
        private: whether private addresses and plain HTTP are allowed.
    """

    def __init__(self, *, private: bool) -> None:
        self._private = private
        # Names that others choose may take long to resolve, and must not keep the threads that ask the database busy.
        self._resolvers = ThreadPoolExecutor(8, "resolve")
        self._client = httpx.AsyncClient(timeout=httpx.Timeout(10), follow_redirects=False, trust_env=False)

    async def close(self) -> None:
        await self._client.aclose()
        self._resolvers.shutdown(wait=False, cancel_futures=True)

    def check(self, url: str, hosts: Sequence[str]) -> str:
        """Refuse an address by its text alone; returns its host.

        Args:
            hosts: that are allowed; none: all.

        Raises:
            ForbiddenError: it is no address, or not an allowed one.
        """
        return self._parsed(url, hosts)[1]

    def _parsed(self, url: str, hosts: Sequence[str]) -> tuple[httpx.URL, str]:
        try:
            parsed = httpx.URL(url)
        except (httpx.InvalidURL, ValueError) as error:
            raise ForbiddenError("not an address such as https://example.org/path") from error
        host = parsed.raw_host.decode("ascii").rstrip(".")
        schemes = ("https", "http") if self._private else ("https",)
        odd_port = parsed.port is not None and not 0 < parsed.port < 65_536
        if parsed.scheme not in schemes or not host or parsed.userinfo or odd_port or len(url) > 2000:
            raise ForbiddenError(f"not an address that begins with {' or '.join(schemes)}:// and a host")
        if hosts and not {host, parsed.host} & {one.lower().rstrip(".") for one in hosts}:
            raise ForbiddenError(f"{host[:100]} is not one of the hosts that are allowed")
        try:
            self._check_address(host, ipaddress.ip_address(host))
        except ValueError as error:
            # A last label that is a number makes an address in one of its older spellings.
            if not _NAME.fullmatch(host) or _NUMBER.fullmatch(host.rpartition(".")[2]) or len(host) > 253:
                raise ForbiddenError(f"{host[:100]!r} is no name of a host") from error
        return parsed, host

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
        parsed, host = self._parsed(url, hosts)
        async with asyncio.timeout(_LIMIT_S):
            address = await self._resolve(host, parsed.port or (443 if parsed.scheme == "https" else 80))
            # To the address; the name goes into the header, and into what the certificate is checked against.
            target = parsed.copy_with(host=address)
            sent = {**headers, "Host": parsed.netloc.decode("ascii")}
            options = {"sni_hostname": host}
            async with self._client.stream(method, target, content=content, headers=sent, extensions=options) as answer:
                body = bytearray()
                async for chunk in answer.aiter_bytes():
                    body += chunk
                    if len(body) > most:
                        break
                return answer.status_code, bytes(body[: most + 1])

    async def _resolve(self, host: str, port: int) -> str:
        look = functools.partial(socket.getaddrinfo, host, port, type=socket.SOCK_STREAM)
        found = await asyncio.get_running_loop().run_in_executor(self._resolvers, look)
        addresses = [str(one[4][0]) for one in found]
        for address in addresses:
            self._check_address(host, ipaddress.ip_address(address.partition("%")[0]))
        return addresses[0]

    def _check_address(self, host: str, address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> None:
        if not self._private and not _is_public(address):
            raise ForbiddenError(f"{host} is a private or special address")


def _is_public(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> bool:
    if isinstance(address, ipaddress.IPv4Address):
        return address.is_global and not address.is_multicast
    # What lies outside the range that is given out stands for something else: this machine, an IPv4 address, a group.
    inner = address.sixtofour
    return address in _GIVEN_OUT and address.is_global and (inner is None or inner.is_global)
