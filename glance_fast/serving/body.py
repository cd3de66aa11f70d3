"""The body of a request: received up to a limit, and the image found in it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from email.message import Message
from email.parser import BytesHeaderParser

FIELD = "image"


class Refused(Exception):
    """A request that gets no score.

    Parameters
    ----------
    status : int
        Of HTTP.
    outcome : str
        One of ``metrics.OUTCOMES``.
    reason : str
        One line for the client.
    """

    def __init__(self, status: int, outcome: str, reason: str) -> None:
        super().__init__(reason)
        self.status, self.outcome, self.reason = status, outcome, reason


async def receive(chunks: AsyncIterator[bytes], limit: int, patience: float) -> bytes:
    """All of a body.

    Parameters
    ----------
    chunks : async iterator of bytes
        Of the request.
    limit : int
        Bytes.
    patience : float
        Seconds that it may take.

    Raises
    ------
    Refused
        It is larger, or takes longer.
    """
    found: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(patience):
            async for chunk in chunks:
                size += len(chunk)
                if size > limit:
                    # The server lets go what still comes.
                    reason = f"the body is larger than {limit / 2**20:g} MiB; reduce the image"
                    raise Refused(413, "too_large", reason)
                found.append(chunk)
    except TimeoutError:
        raise Refused(408, "slow", f"the body did not come within {patience:.0f} s") from None
    return b"".join(found)


def image_in(body: bytes, content_type: str) -> bytes:
    """The bytes of the image: the body itself or, of a form, its field ``image``.

    By hand: parsers of forms write large files to the disk first.

    Raises
    ------
    Refused
        A form without that field, or no form at all.
    """
    header = Message()
    header["Content-Type"] = content_type
    if header.get_content_type() != "multipart/form-data":
        return body
    boundary = header.get_boundary()
    if not boundary:
        raise Refused(422, "damaged", "a form without a boundary in its Content-Type")
    parts = (b"\r\n" + body).split(b"\r\n--" + boundary.encode("utf-8", "surrogateescape"))
    for part in parts[1:]:
        head, found, content = part.removeprefix(b"\r\n").partition(b"\r\n\r\n")
        headers = BytesHeaderParser().parsebytes(head)
        if found and headers.get_param("name", header="content-disposition") == FIELD:
            return content
    raise Refused(422, "damaged", f"a form without a field {FIELD!r}")
