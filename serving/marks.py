"""Marks a finished clip as made by AI: a signed C2PA manifest, and the IPTC digital source type in its metadata.

The metadata is written always; the manifest as soon as there is a certificate. What each format takes:

    MP4, WebP, GIF   C2PA manifest, XMP packet
    WebM             a tag: neither C2PA nor XMP is defined for it

Metadata is easily lost and easily removed; docs/marks.md says what these marks do and do not show.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import av
from PIL import Image

from pipeline.errors import StillmotionError
from pipeline.media.formats import MEDIA_TYPES, Format

from .settings import Settings, SettingsError

if TYPE_CHECKING:
    import c2pa

SOURCE_TYPE = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia"
"""IPTC's term for media made by a trained model: https://cv.iptc.org/newscodes/digitalsourcetype."""

_XMP = (
    '<?xpacket begin="\ufeff" id="W5M0MpCehiHzreSzNTczkc9d"?><x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#"><rdf:Description rdf:about="" '
    'xmlns:Iptc4xmpExt="http://iptc.org/std/Iptc4xmpExt/2008-02-29/" xmlns:xmp="http://ns.adobe.com/xap/1.0/" '
    f'Iptc4xmpExt:DigitalSourceType="{SOURCE_TYPE}" xmp:CreatorTool="stillmotion"/></rdf:RDF></x:xmpmeta>'
    '<?xpacket end="w"?>'
).encode()
_SIGNED = frozenset({"mp4", "webp", "gif"})


class MarkError(StillmotionError):
    """A clip that should be signed cannot be. It is not handed out without its mark."""


@dataclass(frozen=True)
class Marker:
    """Marks clips.

    Attributes:
        labels: whether the metadata is written.
        signer: signs manifests; None: there are none.
        context: of its library.
    """

    labels: bool = True
    signer: c2pa.Signer | None = None
    context: c2pa.Context | None = None

    def kinds(self, file_format: Format) -> tuple[str, ...]:
        """Return the marks that a format gets."""
        signed = self.signer is not None and file_format in _SIGNED
        return (*(("c2pa",) if signed else ()), *(("iptc",) if self.labels else ()))

    def mark(self, data: bytes, file_format: Format, model: str) -> bytes:
        """Return a clip's file with its marks.

        Args:
            model: tag of the model, which the manifest names.

        Raises:
            MarkError: it cannot be signed.
        """
        if self.labels:
            data = _LABEL[file_format](data)
        if self.signer is None or file_format not in _SIGNED:
            return data
        import c2pa

        target = io.BytesIO()
        try:
            builder = c2pa.Builder.from_json(_manifest(model), self.context)
            builder.sign(self.signer, MEDIA_TYPES[file_format], io.BytesIO(data), target)
        except c2pa.C2paError as error:
            raise MarkError(f"the clip cannot be signed: {_line(error)}") from error
        return target.getvalue()


def make_marker(settings: Settings) -> Marker:
    """Return what marks the clips of a server.

    Raises:
        SettingsError: the certificate or its key is missing, or cannot sign; the text names the variable.
    """
    certificate, key = settings.c2pa_certificate, settings.c2pa_key
    if settings.marks == "off":
        return Marker(labels=False)
    if certificate is None and key is None:
        return Marker()
    if certificate is None or key is None:
        missing = "STILLMOTION_C2PA_CERTIFICATE" if certificate is None else "STILLMOTION_C2PA_KEY"
        raise SettingsError(f"{missing} is missing: a certificate and its key belong together")
    try:
        import c2pa
    except ImportError as error:
        raise SettingsError(
            "STILLMOTION_C2PA_CERTIFICATE is set, and c2pa-python is not installed: pip install 'stillmotion[marks]'"
        ) from error
    read = {}
    for name, path in (("CERTIFICATE", certificate), ("KEY", key)):
        try:
            read[name] = path.read_bytes()
        except OSError as error:
            raise SettingsError(f"STILLMOTION_C2PA_{name}: {path} cannot be read: {error.strerror}") from error
    try:
        # Without a picture of the clip in the manifest, and without checking each signature that was just made.
        context = c2pa.Context.from_dict(
            {"verify": {"verify_after_sign": False}, "builder": {"thumbnail": {"enabled": False}}}
        )
        info = c2pa.C2paSignerInfo(settings.c2pa_algorithm.encode(), read["CERTIFICATE"], read["KEY"], None)
        marker = Marker(signer=c2pa.Signer.from_info(info), context=context)
        signed = io.BytesIO(marker.mark(_TINY_GIF, "gif", "start"))
        with c2pa.Reader(MEDIA_TYPES["gif"], signed) as reader:
            holds = json.loads(reader.json()).get("validation_state") != "Invalid"
    except (c2pa.C2paError, MarkError) as error:
        raise SettingsError(f"STILLMOTION_C2PA_CERTIFICATE: {certificate} cannot sign: {_line(error)}") from error
    if not holds:  # the library signs with any key
        raise SettingsError(f"STILLMOTION_C2PA_KEY: {key} is not the key of the first certificate in {certificate}")
    return marker


def _manifest(model: str) -> str:
    """Return what a manifest says; neither the prompt nor the picture is in it."""
    created: dict[str, Any] = {
        "action": "c2pa.created",
        "digitalSourceType": SOURCE_TYPE,
        "softwareAgent": {"name": f"stillmotion, {model}"},
    }
    actions = {"label": "c2pa.actions.v2", "data": {"actions": [created]}}
    return json.dumps({"claim_generator_info": [{"name": "stillmotion"}], "assertions": [actions]})


def _label_mp4(data: bytes) -> bytes:
    """Append the box that Adobe's XMP specification (part 3) has for MP4."""
    box = b"uuid" + bytes.fromhex("be7acfcb97a942e89c71999491e3afac") + _XMP
    return data + (len(box) + 4).to_bytes(4, "big") + box


def _label_webp(data: bytes) -> bytes:
    """Append a chunk `XMP ` and say so in the header of the extended format."""
    if data[12:16] != b"VP8X":  # animations have that header; a clip that stands still is written as one picture
        with Image.open(io.BytesIO(data)) as picture:
            sides = b"".join((side - 1).to_bytes(3, "little") for side in picture.size)
        data = data[:12] + b"VP8X" + (10).to_bytes(4, "little") + bytes(4) + sides + data[12:]
    chunk = b"XMP " + len(_XMP).to_bytes(4, "little") + _XMP + b"\x00" * (len(_XMP) % 2)
    size = (len(data) - 8 + len(chunk)).to_bytes(4, "little")
    return data[:4] + size + data[8:20] + bytes([data[20] | 0x04]) + data[21:] + chunk


def _label_gif(data: bytes) -> bytes:
    """Insert an application extension before the trailer; the bytes after the packet end it for any reader."""
    magic = b"\x01" + bytes(range(255, -1, -1)) + b"\x00"
    return data[:-1] + b"\x21\xff\x0bXMP DataXMP" + _XMP + magic + data[-1:]


def _label_webm(data: bytes) -> bytes:
    """Write a tag, by copying the packets into a new file."""
    target = io.BytesIO()
    with av.open(io.BytesIO(data), "r") as source, av.open(target, "w", format="webm") as copy:
        copy.metadata["DIGITAL_SOURCE_TYPE"] = SOURCE_TYPE
        stream = copy.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                copy.mux(packet)
    return target.getvalue()


_LABEL: dict[Format, Callable[[bytes], bytes]] = {
    "mp4": _label_mp4,
    "webp": _label_webp,
    "gif": _label_gif,
    "webm": _label_webm,
}

# One pixel, to see at the start whether a certificate signs.
_TINY_GIF = bytes.fromhex("47494638396101000100800000000000ffffff2c00000000010001000002024401003b")


def _line(error: BaseException) -> str:
    """Return the first line of an error."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
