"""A multipart/form-data body for a transcription (RFC 7578).

Enters: an `AudioUpload`. Leaves: the content type with its boundary, and the body. Names and file names are escaped as
browsers do (HTML, section 4.10.22.8), so that nothing a client names can end a header line.
"""

from __future__ import annotations

import secrets

from onebeat.conductor.providers.base import AudioUpload


def form_of(upload: AudioUpload, model: str) -> tuple[str, bytes]:
    boundary = f"onebeat-{secrets.token_hex(16)}"
    pieces: list[bytes] = []
    for name, value in (("model", model), *upload.fields):
        pieces.append(_part(boundary, f'name="{_escaped(name)}"', None, value.encode()))
    content_type = upload.content_type if upload.content_type.isprintable() else "application/octet-stream"
    disposition = f'name="file"; filename="{_escaped(upload.filename)}"'
    pieces.append(_part(boundary, disposition, content_type, upload.data))
    pieces.append(f"--{boundary}--\r\n".encode())
    return f"multipart/form-data; boundary={boundary}", b"".join(pieces)


def _part(boundary: str, disposition: str, content_type: str | None, value: bytes) -> bytes:
    head = f"--{boundary}\r\ncontent-disposition: form-data; {disposition}\r\n"
    if content_type:
        head += f"content-type: {content_type}\r\n"
    return head.encode() + b"\r\n" + value + b"\r\n"


def _escaped(name: str) -> str:
    return name.replace("\r", "%0D").replace("\n", "%0A").replace('"', "%22")
