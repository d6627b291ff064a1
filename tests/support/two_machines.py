"""Two machines with one disk: network namespaces with a cable between them, which only root can make."""

import contextlib
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest


@dataclass
class Machine:
    """A network of its own, with one cable to the other machine."""

    name: str
    address: str
    cable: str

    def start(self, command: list[str], log: Path, **variables: str) -> subprocess.Popen[bytes]:
        """Start a command there that uses the cable; its output goes to a file."""
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": self.cable, **variables}
        with log.open("ab") as file:
            inside = ["ip", "netns", "exec", self.name, *command]
            return subprocess.Popen(inside, stdout=file, stderr=file, env=environment, start_new_session=True)

    def processes(self) -> list[int]:
        """Return the processes that run there."""
        found = subprocess.run(["ip", "netns", "pids", self.name], capture_output=True, text=True, check=True)
        return [int(line) for line in found.stdout.split()]

    def lose_power(self) -> None:
        """Kill all that runs there."""
        for _ in range(50):
            for process in self.processes():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            if not self.processes():
                return
            time.sleep(0.1)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


@contextlib.contextmanager
def two_machines() -> Iterator[list[Machine]]:
    """Yield two machines, and remove them with their processes; skip the test if they cannot be made."""
    if shutil.which("ip") is None:
        pytest.skip("needs ip, of the package iproute2, to make two network namespaces")
    own = os.getpid()
    names = [f"gw{own}{side}" for side in "ab"]
    machines = [Machine(name, f"10.213.77.{number}", name) for number, name in enumerate(names, 1)]
    made = []
    try:
        try:
            for machine in machines:
                _ip("netns", "add", machine.name)
                made.append(machine)
            _ip("link", "add", machines[0].cable, "type", "veth", "peer", "name", machines[1].cable)
            for machine in machines:
                _ip("link", "set", machine.cable, "netns", machine.name)
                _ip("-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", machine.cable)
                for device in ("lo", machine.cable):
                    _ip("-n", machine.name, "link", "set", device, "up")
        except subprocess.CalledProcessError as error:
            pytest.skip(f"may not make network namespaces here: {error.stderr.strip()}")
        yield machines
    finally:
        for machine in made:
            machine.lose_power()
            _ip("netns", "del", machine.name)
