"""How long a sound lasts, from the head of its file: what a transcription costs where the provider does not say.

Enters: a file's bytes. Leaves: seconds, and whether they are only a guess. Decodes nothing. Sources: RIFF/WAVE (1991);
RFC 9639 (FLAC), 8.2; RFC 3533 (Ogg); RFC 7845 (Opus), 4; ISO/IEC 11172-3 (MPEG), 2.4.1.3; ISO/IEC 14496-12, 8.2.2.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

GUESSED_BYTES_PER_S = 4_000
"""32 kbit/s, what speech is usually sent at: for formats that are not read here (WebM, a broken head)."""
OPUS_HZ = 48_000
_MP3_KBITS = (0, 32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320)
_MP3_KBITS_LOW = (0, 8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160)


def seconds_of(data: bytes) -> tuple[float, bool]:
    """(seconds, whether they are guessed by the size alone). Never raises, whatever the bytes are."""
    for begins, read in _READERS:
        if begins(data):
            try:
                seconds = read(data)
            except (struct.error, IndexError, ValueError, ZeroDivisionError):
                break
            if 0.0 < seconds <= len(data):  # No speech codec packs a second into a byte: the head lies.
                return seconds, False
            break
    return len(data) / GUESSED_BYTES_PER_S, True


def _wav(data: bytes) -> float:
    """The `data` chunk's bytes by the byte rate of `fmt `. A recorder that streams leaves its sizes at the most."""
    at, rate = 12, 0
    while at + 8 <= len(data):
        name, size = data[at : at + 4], struct.unpack_from("<I", data, at + 4)[0]
        if name == b"fmt ":
            rate = struct.unpack_from("<I", data, at + 16)[0]
        elif name == b"data":
            return float(min(size, len(data) - at - 8) / rate)
        at += 8 + size + size % 2
    raise ValueError("no data")


def _flac(data: bytes) -> float:
    """STREAMINFO: 20 bits of rate, 3 of channels, 5 of depth, 36 of samples."""
    packed = int.from_bytes(data[18:26], "big")
    return float((packed & (1 << 36) - 1) / (packed >> 44))


def _ogg(data: bytes) -> float:
    """The last page's granule position; Opus counts at 48 kHz whatever it was recorded at, Vorbis at its own rate."""
    last = data.rindex(b"OggS")
    samples = struct.unpack_from("<q", data, last + 6)[0]
    vorbis = data.find(b"\x01vorbis", 0, 512)
    rate = struct.unpack_from("<I", data, vorbis + 12)[0] if vorbis >= 0 else OPUS_HZ
    return float(samples / rate)


def _mp3(data: bytes) -> float:
    """By the bit rate of the first frame: exact where it is constant."""
    at = 0
    if data.startswith(b"ID3"):
        size = data[6:10]
        at = 10 + (size[0] << 21 | size[1] << 14 | size[2] << 7 | size[3])
    while not (data[at] == 0xFF and data[at + 1] & 0xE6 == 0xE2):  # Sync, layer III.
        at += 1
    is_first_version = data[at + 1] & 0x18 == 0x18
    kbits = (_MP3_KBITS if is_first_version else _MP3_KBITS_LOW)[data[at + 2] >> 4]
    return (len(data) - at) * 8 / (1000 * kbits)


def _mp4(data: bytes) -> float:
    """The movie header's duration in its own time scale."""
    at = data.index(b"mvhd") + 4
    if data[at]:
        scale, duration = struct.unpack_from(">IQ", data, at + 20)
    else:
        scale, duration = struct.unpack_from(">II", data, at + 12)
    return float(duration / scale)


_READERS: tuple[tuple[Callable[[bytes], bool], Callable[[bytes], float]], ...] = (
    (lambda data: data[:4] == b"RIFF" and data[8:12] == b"WAVE", _wav),
    (lambda data: data[:4] == b"fLaC", _flac),
    (lambda data: data[:4] == b"OggS", _ogg),
    (lambda data: data[4:8] == b"ftyp", _mp4),
    (lambda data: data[:3] == b"ID3" or data[:1] == b"\xff", _mp3),
)
