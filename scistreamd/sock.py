"""A TCP connection as the kernel's sock_diag(7) tells of it, and what of it is payload."""

from __future__ import annotations

import ipaddress
from typing import NamedTuple

from scistreamd.model import IPAddress

# include/net/tcp_states.h
ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING = 1, 4, 5, 8, 9, 11
CLOSED = 7
CARRYING = (ESTABLISHED, FIN_WAIT1, FIN_WAIT2, CLOSE_WAIT, LAST_ACK, CLOSING)
_FIN_RECEIVED = (CLOSE_WAIT, LAST_ACK, CLOSING)
MAPPED = bytes(10) + b"\xff\xff"


class Sock(NamedTuple):
    """One connected socket. Addresses are 16 bytes, those of IPv4 mapped (RFC 4291, 2.5.5.2).

    ``owner``: the user id of who opened or accepted it, 0 for one that has ended (not its control group: that of an
    accepted socket is of who made the listener). ``attached``: a program has it (it is neither waiting to be accepted,
    nor left to the kernel to finish). ``acked``, ``sent`` (without what was sent
    again), ``received``, ``unread``, ``unsent``: bytes, some with SYN and FIN, see `payload`.
    """

    cookie: int
    state: int
    local: bytes
    local_port: int
    remote: bytes
    remote_port: int
    owner: int
    attached: bool
    acked: int
    received: int
    sent: int
    unread: int
    unsent: int
    packets_out: int
    packets_in: int
    retransmits: int
    rtt_usec: int
    cwnd: int
    delivery_rate: int

    @property
    def open(self) -> bool:
        """Whether an application still has, or waits for, something of it."""
        return self.state in (ESTABLISHED, CLOSE_WAIT) or (self.attached and self.state != CLOSED)

    @property
    def fin_received(self) -> bool:
        """Whether the peer has ended its direction, as far as the state tells."""
        return self.state in _FIN_RECEIVED

    def payload_sent(self, active: bool) -> int:
        """Bytes of payload that the peer has acknowledged; ``active``: we opened it.

        tcpi_bytes_acked takes in our SYN, and our FIN; tcpi_bytes_sent neither.
        """
        return max(0, min(self.acked - active, self.sent))

    def payload_received(self, active: bool, fin_received: bool) -> int:
        """Bytes of payload that came; tcpi_bytes_received takes in the peer's FIN.

        Of a socket that has ended the state does not tell whether that came; where ``fin_received``
        says no, it is taken to have come where ours was acknowledged, or where one byte was left unread.
        A reset that follows a FIN can hide it: the value is one too high then.
        """
        came = fin_received or self.fin_received
        if self.state == CLOSED and not came:
            came = self.acked - active > self.sent or self.unread == 1
        return max(0, self.received - came)


def packed(address: IPAddress) -> bytes:
    """The address as `Sock` has it."""
    return address.packed if isinstance(address, ipaddress.IPv6Address) else MAPPED + address.packed
