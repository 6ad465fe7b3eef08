"""Marks of origin: written by the server, read back by libraries and tools that did not write them."""

from __future__ import annotations

import datetime as dt
import io
import json
import shutil
import subprocess

import av
import c2pa
import numpy as np
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
from PIL import Image

from pipeline.media.formats import FORMATS, MEDIA_TYPES
from pipeline.media.video import decode, encode
from serving.marks import SOURCE_TYPE, make_marker
from serving.settings import Settings, SettingsError

CLIP = np.tile(np.arange(0, 240, 10, dtype=np.uint8)[:, None, None, None], (1, 32, 32, 3))
SIGNED = ("mp4", "webp", "gif")


def certificate(days=30):
    """A certificate of a root of its own, as C2PA asks for, and its key, in PEM."""
    now, day = dt.datetime.now(dt.UTC), dt.timedelta(days=1)
    root_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())

    def named(text):
        parts = (NameOID.ORGANIZATION_NAME, "Tests"), (NameOID.COMMON_NAME, text)
        return x509.Name([x509.NameAttribute(*part) for part in parts])

    def issued(subject, public_key, *extensions):
        builder = x509.CertificateBuilder(named("root"), named(subject), public_key, x509.random_serial_number())
        builder = builder.not_valid_before(now - 60 * day).not_valid_after(now + days * day)
        for extension, critical in extensions:
            builder = builder.add_extension(extension, critical)
        return builder.sign(root_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    no = dict.fromkeys(
        ("content_commitment", "key_encipherment", "data_encipherment", "key_agreement", "encipher_only",
         "decipher_only"), False,
    )  # fmt: skip
    issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(root_key.public_key())
    leaf = issued(
        "signer",
        key.public_key(),
        (x509.BasicConstraints(ca=False, path_length=None), True),
        (x509.KeyUsage(digital_signature=True, key_cert_sign=False, crl_sign=False, **no), True),
        (x509.ExtendedKeyUsage([ExtendedKeyUsageOID.EMAIL_PROTECTION]), False),
        (issuer, False),
    )
    root = issued(
        "root",
        root_key.public_key(),
        (x509.BasicConstraints(ca=True, path_length=None), True),
        (x509.KeyUsage(digital_signature=False, key_cert_sign=True, crl_sign=True, **no), True),
    )
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return leaf + root, private


def settings_with(folder, days=30, **more):
    chain, key = certificate(days)
    (folder / "chain.pem").write_bytes(chain)
    (folder / "key.pem").write_bytes(key)
    return Settings(c2pa_certificate=folder / "chain.pem", c2pa_key=folder / "key.pem", **more)


@pytest.fixture(scope="module")
def marker(tmp_path_factory):
    return make_marker(settings_with(tmp_path_factory.mktemp("certificate")))


def manifest_of(data, file_format):
    with c2pa.Reader(MEDIA_TYPES[file_format], io.BytesIO(data)) as reader:
        return json.loads(reader.json())


@pytest.mark.parametrize("file_format", FORMATS)
def test_a_marked_clip_plays_as_before(marker, file_format):
    plain = encode(CLIP, 8, file_format)
    assert np.array_equal(decode(marker.mark(plain, file_format, "animator:1")), decode(plain))


@pytest.mark.parametrize("file_format", SIGNED)
def test_a_manifest_says_that_a_trained_model_made_it_and_covers_the_whole_file(marker, file_format):
    data = marker.mark(encode(CLIP, 8, file_format), file_format, "animator:1")
    found = manifest_of(data, file_format)
    assert found["validation_state"] == "Valid"
    manifest = found["manifests"][found["active_manifest"]]
    (action,) = next(one["data"]["actions"] for one in manifest["assertions"] if "actions" in one["label"])
    assert action["action"] == "c2pa.created"
    assert action["digitalSourceType"] == SOURCE_TYPE
    assert "animator:1" in json.dumps(action)
    changed = bytearray(data)
    changed[len(data) // 2] ^= 1
    assert manifest_of(bytes(changed), file_format)["validation_state"] == "Invalid"


@pytest.mark.skipif(shutil.which("exiftool") is None, reason="no exiftool (on Debian: libimage-exiftool-perl)")
@pytest.mark.parametrize("file_format", SIGNED)
def test_exiftool_reads_the_digital_source_type(marker, tmp_path, file_format):
    path = tmp_path / f"clip.{file_format}"
    path.write_bytes(marker.mark(encode(CLIP, 8, file_format), file_format, "animator:1"))
    done = subprocess.run(["exiftool", "-json", "-G1", "-a", path], capture_output=True, text=True, check=True)
    (found,) = json.loads(done.stdout)
    assert SOURCE_TYPE in (value for name, value in found.items() if name.endswith("DigitalSourceType"))
    assert not [name for name in found if "Warning" in name or "Error" in name]


def test_players_libraries_read_the_digital_source_type(marker):
    data = {name: marker.mark(encode(CLIP, 8, name), name, "animator:1") for name in ("webp", "webm")}
    with Image.open(io.BytesIO(data["webp"])) as picture:
        assert SOURCE_TYPE.encode() in picture.info["xmp"]
    with av.open(io.BytesIO(data["webm"])) as container:
        assert container.metadata["DIGITAL_SOURCE_TYPE"] == SOURCE_TYPE


@pytest.mark.parametrize("file_format", FORMATS)
@pytest.mark.parametrize("frames", [CLIP[:1], CLIP[[3, 3, 3]]], ids=["one frame", "standing still"])
def test_a_clip_without_motion_is_marked_as_well(marker, file_format, frames):
    plain = encode(frames, 8, file_format)
    data = marker.mark(plain, file_format, "animator:1")
    assert SOURCE_TYPE.encode() in data
    assert np.array_equal(decode(data), decode(plain))
    if file_format in SIGNED:
        assert manifest_of(data, file_format)["validation_state"] == "Valid"


def test_a_webm_has_no_manifest_and_does_not_claim_one(marker):
    assert marker.kinds("webm") == ("iptc",)
    assert marker.kinds("mp4") == ("c2pa", "iptc")


def test_without_a_certificate_the_metadata_is_written_alone_and_off_writes_nothing():
    plain = encode(CLIP, 8, "mp4")
    alone = make_marker(Settings())
    assert alone.kinds("mp4") == ("iptc",)
    assert SOURCE_TYPE.encode() in alone.mark(plain, "mp4", "m")
    off = make_marker(Settings(marks="off"))
    assert (off.kinds("mp4"), off.mark(plain, "mp4", "m")) == ((), plain)


def test_a_certificate_that_cannot_sign_is_named_at_the_start(tmp_path):
    good = settings_with(tmp_path)
    for values, words in [
        ({"c2pa_key": None}, "STILLMOTION_C2PA_KEY is missing"),
        ({"c2pa_certificate": None}, "STILLMOTION_C2PA_CERTIFICATE is missing"),
        ({"c2pa_key": tmp_path / "none"}, "none cannot be read: No such file"),
        ({"c2pa_certificate": tmp_path / "key.pem"}, "cannot sign"),
        ({"c2pa_algorithm": "ed25519"}, "cannot sign"),
    ]:
        with pytest.raises(SettingsError, match=words):
            make_marker(good.model_copy(update=values))
    (tmp_path / "other.pem").write_bytes(certificate()[1])
    with pytest.raises(SettingsError, match=r"STILLMOTION_C2PA_KEY: .*other\.pem is not the key of"):
        make_marker(good.model_copy(update={"c2pa_key": tmp_path / "other.pem"}))
    (tmp_path / "old").mkdir()
    with pytest.raises(SettingsError, match="cannot sign"):
        make_marker(settings_with(tmp_path / "old", days=-1))


def test_a_server_with_a_certificate_marks_what_it_makes_and_says_so(start_server, quick_model, tmp_path):
    settings = settings_with(tmp_path)
    paths = {name: getattr(settings, name) for name in ("c2pa_certificate", "c2pa_key")}
    server = start_server(model=quick_model, **paths)
    server.wait_until_ready()
    answer = server.animate(format="gif")
    assert answer.headers["x-stillmotion-marks"] == "c2pa, iptc"
    assert manifest_of(answer.content, "gif")["validation_state"] == "Valid"
    assert server.get("/docs.json").json()["info"]["x-marks"]["webm"] == ["iptc"]
    assert server.metric("stillmotion_marks_total", kind="c2pa") == 1
