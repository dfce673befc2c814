"""Hosts of one machine: network namespaces, each with a cable to one switch.

No namespace has a name. Each one lives as long as a process in it, and that ends with its parent,
so nothing is left behind, however a run ends.
"""

import os
import platform
import shutil
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

from tests.support.postgres import install

NETWORK = "10.99.0.0/24"
PROGRAMS = {"ip": "iproute2", "unshare": "util-linux", "nsenter": "util-linux"}


def why_not() -> str | None:
    """Why there can be no such hosts here. Packages that are missing are installed."""
    if sys.platform != "linux":
        return "network namespaces are Linux's"
    if os.geteuid() != 0:
        return "only root may make network namespaces"
    missing = {package for name, package in PROGRAMS.items() if shutil.which(name) is None}
    missing |= set() if faketime().exists() else {"libfaketime"}
    if missing:
        install(*sorted(missing))
    made = subprocess.run(["unshare", "--net", "true"], check=False, capture_output=True)
    return made.stderr.decode() if made.returncode else None


def faketime() -> Path:
    """The library that gives a process another wall clock."""
    return Path(f"/usr/lib/{platform.machine()}-linux-gnu/faketime/libfaketime.so.1")


def own_namespace() -> str:
    """The network namespace of this process."""
    return str(Path("/proc/self/ns/net").readlink())


class Host:
    """A network namespace that ends with this process.

    Args:
        number: the last part of its address; None for the switch.
    """

    def __init__(self, number: int | None) -> None:
        self.address = f"10.99.0.{number}"
        self.port = f"port{number}"
        command = ["setpriv", "--pdeathsig=KILL", "unshare", "--net", "sleep", "infinity"]
        self.holder = subprocess.Popen(command)
        self.namespace = Path(f"/proc/{self.holder.pid}/ns/net")
        until = time.monotonic() + 10
        while str(self.namespace.readlink()) == own_namespace():
            assert time.monotonic() < until, "there is no new network namespace"
            assert self.holder.poll() is None, "no network namespace can be made"
            time.sleep(0.005)

    @property
    def enter(self) -> list[str]:
        """What goes before a command that runs at this host."""
        return ["nsenter", f"--net={self.namespace}"]

    def processes(self) -> list[int]:
        """What runs there, besides what holds the namespace."""
        found, namespace = [], self.namespace.readlink()
        for each in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if (each / "ns/net").readlink() == namespace:
                    found.append(int(each.name))
        return [each for each in found if each != self.holder.pid]

    def ip(self, *arguments: str) -> None:
        """Run `ip` there."""
        subprocess.run([*self.enter, "ip", *arguments], check=True, timeout=20)


class Network:
    """A switch, the host that this process is at, and as many more as are asked for.

    This process must have a namespace of its own already: see `unshare --net`.
    """

    address = "10.99.0.1"

    def __init__(self) -> None:
        self._hosts: list[Host] = []
        self._switch = self._made(None)
        self._switch.ip("link", "add", "switch", "type", "bridge")
        self._switch.ip("link", "set", "switch", "up")
        self._plug("port1", os.getpid())
        for command in ("link set lo up", f"addr add {self.address}/24 dev cable", UP):
            subprocess.run(["ip", *command.split()], check=True, timeout=20)

    def _made(self, number: int | None) -> Host:
        self._hosts.append(Host(number))
        return self._hosts[-1]

    def _plug(self, port: str, process: int) -> None:
        peer = ["type", "veth", "peer", "name", "cable", "netns", str(process)]
        self._switch.ip("link", "add", port, *peer)
        self._switch.ip("link", "set", port, "master", "switch", "up")

    def add(self) -> Host:
        """Another host."""
        host = self._made(len(self._hosts) + 1)
        self._plug(host.port, host.holder.pid)
        for command in ("link set lo up", f"addr add {host.address}/24 dev cable", UP):
            host.ip(*command.split())
        return host

    def cut(self, port: str) -> None:
        """Pull a cable."""
        self._switch.ip("link", "set", port, "down")

    def restore(self, port: str) -> None:
        """Plug it in again."""
        self._switch.ip("link", "set", port, "up")

    def close(self) -> None:
        """End all hosts."""
        for host in self._hosts:
            host.holder.kill()
            host.holder.wait(10)


UP = "link set cable up"
