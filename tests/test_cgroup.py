"""Units, containers and pods, by the paths that their cgroups have in the wild."""

from __future__ import annotations

import pytest

from tracer.cgroup import Place, place

ID = "9ec39b91f3d70e1beff50a308f77067065ea6be0d91a3378375056cd4422cf3d"
INNER = "4f797c539e6c745de61a93ca3ff892358ecbcaccd8414d5db545c38428142970"
UID = "a5c1f8d5-1919-434d-add7-4afaafdaef89"
U_ID = UID.replace("-", "_")
STATIC = "eb6e2c8d1f0a4b3c9d7e5f6a8b1c2d3e"
"""Of a pod that the kubelet has from a file."""


@pytest.mark.parametrize(
    ("cgroup", "unit", "container", "pod"),
    [
        # systemd
        (None, None, None, None),
        ("", None, None, None),
        ("/", None, None, None),
        ("/init.scope", "init.scope", None, None),
        ("/system.slice/php8.2-fpm.service", "php8.2-fpm.service", None, None),
        ("/system.slice/php8.2-fpm.service (deleted)", "php8.2-fpm.service", None, None),
        ("/system.slice/system-postgresql.slice/postgresql@15-main.service", "postgresql@15-main.service", None, None),
        (r"/system.slice/dev-disk\x2dby\x2duuid-1f2e.swap", r"dev-disk\x2dby\x2duuid-1f2e.swap", None, None),
        (r"/system.slice/system-getty.slice/getty@tty1.service", "getty@tty1.service", None, None),
        (r"/system.slice/system-x\x2dy.slice/x\x2dy@a\x20b.service", r"x\x2dy@a\x20b.service", None, None),
        ("/system.slice/_cpu.service", "cpu.service", None, None),
        ("/user.slice/user-1000.slice/session-2.scope", "session-2.scope", None, None),
        ("/user.slice/user-1000.slice/user@1000.service/init.scope", "init.scope", None, None),
        ("/user.slice/user-1000.slice/user@1000.service/app.slice/x.service", "x.service", None, None),
        (
            r"/user.slice/user-1000.slice/user@1000.service/app.slice/app-gnome-org.x\x2dy-4711.scope",
            r"app-gnome-org.x\x2dy-4711.scope",
            None,
            None,
        ),
        ("/user.slice/user-1000.slice", "user-1000.slice", None, None),
        ("/system.slice/web.service/workers", "web.service", None, None),
        ("/batch/jobs/1ee58585d5f07da59750da339ba69dd9", None, None, None),
        ("/../../system.slice/web.service", "web.service", None, None),
        # docker, by cgroupfs and by systemd
        (f"/docker/{ID}", None, ID, None),
        (f"/{ID}", None, ID, None),
        (f"/system.slice/docker-{ID}.scope", f"docker-{ID}.scope", ID, None),
        (f"/web.slice/docker-{ID}.scope", f"docker-{ID}.scope", ID, None),
        (f"/system.slice/docker.service/docker/{ID}", "docker.service", ID, None),
        (f"/ecs/7a1e2f/{ID}", None, ID, None),
        ("/system.slice/docker.service", "docker.service", None, None),
        ("/system.slice/containerd.service", "containerd.service", None, None),
        # a systemd in a container, and containers in one
        (f"/docker/{ID}/system.slice/nginx.service", "nginx.service", ID, None),
        (f"/system.slice/docker-{ID}.scope/init.scope", "init.scope", ID, None),
        (f"/docker/{ID}/docker/{INNER}", None, INNER, None),
        # Kubernetes
        (f"/kubepods/pod{UID}/{ID}", None, ID, UID),
        (f"/kubepods/burstable/pod{UID}/{ID}", None, ID, UID),
        (f"/kubepods/besteffort/pod{UID}/{ID}", None, ID, UID),
        (f"/kubepods/burstable/pod{STATIC}/{ID}", None, ID, STATIC),
        (f"/kubepods/burstable/pod{UID}/crio-{ID}", None, ID, UID),
        (f"/kubepods/burstable/pod{UID}/crio-conmon-{ID}", None, None, UID),
        (
            f"/kubepods.slice/kubepods-pod{U_ID}.slice/cri-containerd-{ID}.scope",
            f"cri-containerd-{ID}.scope",
            ID,
            UID,
        ),
        (
            f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{U_ID}.slice/cri-containerd-{ID}.scope",
            f"cri-containerd-{ID}.scope",
            ID,
            UID,
        ),
        (
            f"/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{U_ID}.slice/docker-{ID}.scope",
            f"docker-{ID}.scope",
            ID,
            UID,
        ),
        (
            f"/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{STATIC}.slice/{ID}",
            *[
                f"kubepods-burstable-pod{STATIC}.slice",
                ID,
                STATIC,
            ],
        ),
        (f"/kubepods.slice/kubepods-pod{U_ID}.slice/crio-{ID}.scope", f"crio-{ID}.scope", ID, UID),
        (f"/kubepods.slice/kubepods-pod{U_ID}.slice/crio-{ID}.scope/container", f"crio-{ID}.scope", ID, UID),
        (f"/kubepods.slice/kubepods-pod{U_ID}.slice/crio-conmon-{ID}.scope", f"crio-conmon-{ID}.scope", None, UID),
        (
            f"/system.slice/containerd.service/kubepods-burstable-pod{U_ID}.slice:cri-containerd:{ID}",
            "containerd.service",
            ID,
            UID,
        ),
        (f"/kubepods-pod{U_ID}.slice:cri-containerd:{ID}", None, ID, UID),
        (f"/system.slice/containerd.service/system.slice:docker:{ID}", "containerd.service", ID, None),
        (
            f"/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-pod{U_ID}.slice/cri-containerd-{ID}.scope",
            f"cri-containerd-{ID}.scope",
            ID,
            UID,
        ),
        (f"/docker/{INNER}/kubelet/kubepods/besteffort/pod{UID}/{ID}", None, ID, UID),
        (f"/kubepods/burstable/pod{UID}/{ID}/docker/{INNER}", None, INNER, UID),
        # podman
        (f"/machine.slice/libpod-{ID}.scope", f"libpod-{ID}.scope", ID, None),
        (f"/machine.slice/libpod-{ID}.scope/container", f"libpod-{ID}.scope", ID, None),
        (f"/machine.slice/libpod-conmon-{ID}.scope", f"libpod-conmon-{ID}.scope", None, None),
        (f"/libpod_parent/libpod-{ID}", None, ID, None),
        (f"/libpod_parent/libpod-{ID}/conmon", None, None, None),
        ("/libpod_parent/conmon", None, None, None),
        (f"/machine.slice/machine-libpod_pod_{INNER}.slice/libpod-{ID}.scope", f"libpod-{ID}.scope", ID, None),
        (
            f"/user.slice/user-1000.slice/user@1000.service/user.slice/libpod-{ID}.scope/container",
            f"libpod-{ID}.scope",
            ID,
            None,
        ),
        (f"/system.slice/web.service/libpod-payload-{ID}", "web.service", ID, None),
        ("/system.slice/web.service/runtime", "web.service", None, None),
        # lxc
        ("/lxc.payload.web", None, "web", None),
        ("/lxc.payload.web/system.slice/nginx.service", "nginx.service", "web", None),
        ("/lxc.payload/web", None, "web", None),
        ("/lxc.monitor.web", None, None, None),
        ("/lxc/web", None, "web", None),
        ("/lxc/101/ns/init.scope", "init.scope", "101", None),
        ("/lxc/outer/lxc/inner", None, "inner", None),
        ("/lxc.payload.outer/lxc.payload.inner-1", None, "inner-1", None),
        ("/lxc", None, None, None),
        # systemd-nspawn, and a virtual machine
        ("/machine.slice/systemd-nspawn@web.service", "systemd-nspawn@web.service", "web", None),
        ("/machine.slice/systemd-nspawn@web-1.service/payload", "systemd-nspawn@web-1.service", "web-1", None),
        (
            "/machine.slice/systemd-nspawn@web.service/payload/system.slice/nginx.service",
            "nginx.service",
            "web",
            None,
        ),
        ("/machine.slice/systemd-nspawn@web.service/supervisor", "systemd-nspawn@web.service", None, None),
        (r"/machine.slice/machine-my\x2dweb.scope", r"machine-my\x2dweb.scope", "my-web", None),
        (r"/machine.slice/machine-qemu\x2d1\x2dvm.scope", r"machine-qemu\x2d1\x2dvm.scope", None, None),
        # what looks like one, and is none
        (f"/build/{ID[:63]}", None, None, None),
        (f"/build/{ID}0", None, None, None),
        (f"/build/{ID.upper()}", None, None, None),
        ("/build/podium", None, None, None),
        ("/a:b:c", None, None, None),
        ("/\x1b[2J.service", None, None, None),
    ],
)
def test_cgroup(cgroup: str | None, unit: str | None, container: str | None, pod: str | None) -> None:
    assert place(cgroup) == Place(unit, container, pod)
