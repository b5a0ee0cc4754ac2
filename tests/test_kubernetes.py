"""What docs/kubernetes has for a cluster: the manifest, and the image, here of a root with next to nothing in it."""

from __future__ import annotations

import gzip
import hashlib
import importlib.machinery
import importlib.util
import io
import json
import os
import re
import shutil
import subprocess
import tarfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from tracer.kernel import host
from tracer.proc import pod_logs
from tracer.service import unit

KUBERNETES = Path(__file__).parents[1] / "docs/kubernetes"
MADE_S = 1_700_000_000


def manifest() -> list[dict[str, Any]]:
    yaml = pytest.importorskip("yaml")
    return list(yaml.safe_load_all((KUBERNETES / "daemonset.yaml").read_text()))


def container() -> tuple[dict[str, Any], dict[str, Any]]:
    """The pod, and its container."""
    pod = manifest()[1]["spec"]["template"]["spec"]
    (found,) = pod["containers"]
    return pod, found


def unknown(document: Any, kind: str, models: Any, place: str) -> list[str]:
    """Fields of a document that Kubernetes does not have there, or that are not of their type."""
    many = re.fullmatch(r"(?:list|dict)[\[(](?:str, )?(.+)[\])]", kind, re.IGNORECASE)
    if many:
        items = document.items() if isinstance(document, dict) else enumerate(document)
        return [each for name, item in items for each in unknown(item, many[1], models, f"{place}.{name}")]
    if not hasattr(models, kind):
        known = {"str": str, "int": int, "bool": bool, "object": object}
        return [] if isinstance(document, known[kind]) else [f"{place} is no {kind}"]
    model = getattr(models, kind)
    names = {written: name for name, written in model.attribute_map.items()}
    found = [f"{place}.{name}" for name in document if name not in names]
    for name in document.keys() & names.keys():
        found += unknown(document[name], model.openapi_types[names[name]], models, f"{place}.{name}")
    return found


def test_the_manifest_has_the_fields_that_kubernetes_has() -> None:
    models = pytest.importorskip("kubernetes.client")
    for document in manifest():
        assert unknown(document, f"V1{document['kind']}", models, document["kind"]) == []
    assert unknown({"kind": 7, "sepc": {}}, "V1DaemonSet", models, "x") == ["x.sepc", "x.kind is no str"]


def test_the_pod_is_selected_and_its_mounts_are_there() -> None:
    namespace, daemonset = manifest()
    pod, found = container()
    assert daemonset["metadata"]["namespace"] == namespace["metadata"]["name"]
    selected = daemonset["spec"]["selector"]["matchLabels"]
    assert selected.items() <= daemonset["spec"]["template"]["metadata"]["labels"].items()
    volumes = {volume["name"]: volume["hostPath"]["path"] for volume in pod["volumes"]}
    mounts = {mount["name"]: mount["mountPath"] for mount in found["volumeMounts"]}
    assert volumes == mounts  # shmtrace looks where the host has them
    assert {mount["mountPath"] for mount in found["volumeMounts"] if not mount.get("readOnly")} == {
        "/var/lib/shmtrace",
        "/var/cache/shmtrace",
        "/var/lib/node_exporter/textfile_collector",
    }
    assert {"/var/log/pods", "/var/log/containers", str(host.TRACEFS)} <= set(mounts.values())
    assert pod_logs.PodLogs()._root == Path("/var/log")
    assert pod["hostPID"]


def test_it_may_do_what_the_unit_may_and_enter_namespaces() -> None:
    _, found = container()
    capabilities = set(found["securityContext"]["capabilities"]["add"])
    text = Path(unit.__file__).with_name("shmtrace.service").read_text()
    (line,) = [line for line in text.splitlines() if line.startswith("CapabilityBoundingSet=")]
    of_unit = {name.removeprefix("CAP_") for name in line.partition("=")[2].split()}
    assert capabilities == of_unit | {"SYS_ADMIN", "SYS_RESOURCE"}
    assert found["securityContext"]["readOnlyRootFilesystem"]
    # what may gain privileges has to be allowed to, where it has SYS_ADMIN: validation.go of pkg/apis/core
    assert "allowPrivilegeEscalation" not in found["securityContext"]


# ---- the image ----


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    loader = importlib.machinery.SourceFileLoader("build_image", str(KUBERNETES / "build-image"))
    spec = importlib.util.spec_from_loader(loader.name, loader)
    assert spec
    module = importlib.util.module_from_spec(spec)
    loader.exec_module(module)
    return module


@pytest.fixture
def root(tmp_path: Path) -> Path:
    directory = tmp_path / "root"
    (directory / "usr/local/bin").mkdir(parents=True)
    (directory / "usr/local/bin/shmtrace").write_bytes(b"#!/bin/sh\n" + b"x" * 2_000_003)
    (directory / "usr/local/bin/shmtrace").chmod(0o755)
    (directory / "bin").symlink_to("usr/bin")
    os.link(directory / "usr/local/bin/shmtrace", directory / "usr/local/bin/again")
    (directory / "empty").mkdir()
    (directory / "wéb").touch()
    return directory


def build(recipe: ModuleType, root: Path, into: Path) -> Path:
    into.mkdir()
    with (into / "image.tar").open("wb") as file:
        recipe.write_tar(recipe.image(root, "shmtrace:23", MADE_S, "amd64", into), MADE_S, file)
    return into / "image.tar"


def test_an_image_is_as_it_says(recipe: ModuleType, root: Path, tmp_path: Path) -> None:
    with tarfile.open(build(recipe, root, tmp_path / "a")) as tar:
        files = {member.name: tar.extractfile(member).read() for member in tar}  # type: ignore[union-attr]
    blobs = {name.rpartition("/")[2]: content for name, content in files.items() if name.startswith("blobs/")}
    assert {hashlib.sha256(content).hexdigest() for content in blobs.values()} == set(blobs)

    def follow(descriptor: dict[str, Any]) -> bytes:
        content = blobs[descriptor["digest"].removeprefix("sha256:")]
        assert len(content) == descriptor["size"]
        return content

    assert json.loads(files["oci-layout"]) == {"imageLayoutVersion": "1.0.0"}
    (described,) = json.loads(files["index.json"])["manifests"]
    assert described["annotations"]["org.opencontainers.image.ref.name"] == "shmtrace:23"
    manifest = json.loads(follow(described))
    config, (layer,) = json.loads(follow(manifest["config"])), manifest["layers"]
    assert (config["os"], config["architecture"], config["created"]) == ("linux", "amd64", "2023-11-14T22:13:20Z")
    unpacked = gzip.decompress(follow(layer))
    assert config["rootfs"]["diff_ids"] == [f"sha256:{hashlib.sha256(unpacked).hexdigest()}"]
    (docker,) = json.loads(files["manifest.json"])
    assert [docker["Config"], *docker["Layers"]] == [
        f"blobs/sha256/{each['digest'][7:]}" for each in (manifest["config"], layer)
    ]
    with tarfile.open(fileobj=io.BytesIO(unpacked)) as tar:
        members = {member.name: member for member in tar}
        assert all(not member.uname and member.mtime <= MADE_S for member in members.values())
        assert members["usr/local/bin/shmtrace"].mode == 0o755
        assert members["bin"].issym()
        assert "wéb" in members
        program = tar.extractfile(members["usr/local/bin/shmtrace"])
        assert program
        assert program.read() == (root / "usr/local/bin/shmtrace").read_bytes()


def test_the_same_makes_the_same(recipe: ModuleType, root: Path, tmp_path: Path) -> None:
    first = build(recipe, root, tmp_path / "a").read_bytes()
    copy = tmp_path / "root-2"
    subprocess.run(["cp", "-a", root, copy], check=True)
    os.utime(copy / "empty")
    assert build(recipe, copy, tmp_path / "b").read_bytes() == first


@pytest.mark.needs("skopeo")
@pytest.mark.parametrize("kind", ["oci-archive", "docker-archive"])
def test_what_another_reads_of_it(kind: str, recipe: ModuleType, root: Path, tmp_path: Path) -> None:
    archive = build(recipe, root, tmp_path / "a")
    line = ["skopeo", "--tmpdir", str(tmp_path), "inspect", "--config", f"{kind}:{archive}"]
    found = json.loads(subprocess.run(line, capture_output=True, check=True).stdout)
    assert found["config"]["Entrypoint"] == ["/usr/local/bin/shmtrace"]
    assert shutil.which("skopeo")


def test_without_the_archive_it_says_what_makes_it(tmp_path: Path) -> None:
    line = [str(KUBERNETES / "build-image"), "-o", str(tmp_path / "x.tar"), "--pyz", str(tmp_path / "absent")]
    done = subprocess.run(line, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"build-image: {tmp_path}/absent is not there: make it with ./bootstrap pyz\n"
