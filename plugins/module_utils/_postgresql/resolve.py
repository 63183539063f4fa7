# Copyright: (c) 2026, stateful.dbops contributors
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Look up a server's name within a deadline.

libpq looks names up with getaddrinfo inside PQconnectStart, which nothing can interrupt: with a name server that does
not answer it takes 10 s and more, whatever deadline the call has. So we look up ourselves, in a thread that can be left
behind, and give libpq the addresses (``hostaddr``) beside the name, which TLS and the password file still go by.
"""

from __future__ import annotations

import socket
import threading
from typing import Any

from .._core.clock import Deadline


class Unresolved(Exception):
    """The name has no address, or none was found before the deadline."""


def is_name(host: str) -> bool:
    """Whether the host has to be looked up: it is no socket's directory, no address, and no list (which is libpq's)."""
    if not host or host[0] in "/@" or "," in host:
        return False
    try:
        socket.getaddrinfo(host, None, flags=socket.AI_NUMERICHOST)
    except (OSError, UnicodeError):
        return True
    return False


def look_up(host: str, deadline: Deadline) -> list[str]:
    """All addresses of ``host`` in the resolver's order, which is libpq's. Raises Unresolved."""
    answers: list[Any] = []  # one: what getaddrinfo returned, or raised

    def ask() -> None:
        try:
            answers.append(socket.getaddrinfo(host, None, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            answers.append(error)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(deadline.left())
    if not answers:
        raise Unresolved(f'the resolver did not find the address of "{host}" before the deadline')
    answer = answers[0]
    if isinstance(answer, Exception):
        reason = getattr(answer, "strerror", None) or str(answer)
        raise Unresolved(f'could not translate host name "{host}" to address: {reason}')
    return list(dict.fromkeys(item[4][0] for item in answer))
