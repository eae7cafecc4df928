import msgspec
import pytest

from umbel import release, signing
from umbel.errors import PlanError
from umbel.release import Parity, ReleaseFile, ReleaseManifest

KEY = signing.generate_key()
FILE = ReleaseFile("0" * 64, 12, {"loss": 0.5})
OLD = {
    "schema": 1,
    "id": "line-r3",
    "run": "abc",
    "round": 3,
    "plan": "0" * 64,
    "task": "line",
    "files": {"float32": {"sha256": "0" * 64, "size": 12, "metrics": {"loss": 0.5}}},
    "created": 1.5,
    "lineage": {"checkpoint": "1" * 64},
}


def test_a_manifest_of_before_there_were_reports_still_verifies() -> None:
    token = signing.sign_as("release", msgspec.json.encode(OLD), KEY)
    manifest = release.verify(token, KEY)
    assert manifest == release.contents(token)
    assert (manifest.files["float32"], manifest.parity) == (FILE, None)


def test_a_manifest_without_a_report_is_written_as_it_always_was() -> None:
    manifest = msgspec.convert(OLD, ReleaseManifest)
    assert msgspec.json.decode(signing.payload_unverified(release.sign(manifest, KEY))) == OLD


def test_a_report_travels_in_the_signed_manifest() -> None:
    parity = Parity("359 held-out", "x86_64, 2 cores, ai-edge-litert 2.3.0", {"loss": 0.5}, {"loss": 0.5})
    file = ReleaseFile("0" * 64, 12, {"loss": 0.5}, 1e-3, 0.01)
    manifest = msgspec.structs.replace(msgspec.convert(OLD, ReleaseManifest), files={"float16": file}, parity=parity)
    assert release.verify(release.sign(manifest, KEY), KEY) == manifest
    with pytest.raises(PlanError, match="does not verify"):
        release.verify(release.sign(manifest, signing.generate_key()), KEY)
