"""A whole Slurm on this machine: a controller, two nodes and munge, on loopback, in one folder.

Debian's slurm-wlm and munge suffice; nothing of it is started as a service, and there is no
accounting. A job that is queued again waits for `cred_expire`, 120 s where no one sets it.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
from contextlib import suppress
from getpass import getuser
from pathlib import Path

from chaos.processes import PATIENCE, alive, free_ports, wait_until

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "squeue", "scontrol", "scancel")
NODES = ("n1", "n2")
CONF = """
ClusterName=here
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=1,bf_interval=1
KillWait=5
ReturnToService=2
SlurmdTimeout=10
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs={cpus} State=UNKNOWN
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs={cpus} State=UNKNOWN
PartitionName=low Nodes=n1 Default=YES PriorityTier=1 State=UP
PartitionName=high Nodes=n1 PriorityTier=10 State=UP
PartitionName=both Nodes=n1,n2 PriorityTier=1 State=UP
"""


def missing() -> str | None:
    """Why no cluster can be started here; None where one can."""
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    absent = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    return f"no {', '.join(absent)}: apt-get install slurm-wlm munge" if absent else None


class SlurmCluster:
    """A cluster in a folder; `environment` is what a command needs to reach it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self.environment = {
            **{key: value for key, value in os.environ.items() if not key.startswith("SLURM")},
            "SLURM_CONF": str(folder / "slurm.conf"),
            "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        }

    def start(self) -> None:
        """Start everything, and wait until the nodes take jobs."""
        self.folder.chmod(0o755)  # munged trusts no folder that others can write to
        for name in ("munge", "state", *(f"spool-{node}" for node in NODES)):
            (self.folder / name).mkdir(mode=0o755)
        munge = self.folder / "munge"
        (munge / "key").touch(mode=0o600)
        (munge / "key").write_bytes(secrets.token_bytes(128))
        given = {"host": socket.gethostname().partition(".")[0], "user": getuser()}
        text = CONF.format(**given, folder=self.folder, ports=free_ports(3), cpus=os.cpu_count())
        (self.folder / "slurm.conf").write_text(text)
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log"}
        self.run(
            *("munged", "--force", "--num-threads=2", f"--seed-file={munge / 'seed'}"),
            *(f"--{option}={munge / name}" for option, name in files.items()),
        )
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        wait_until(lambda: set(self.run("sinfo", "-h", "-N", "-o", "%T").split()) == {"idle"})

    def start_controller(self) -> None:
        """Start slurmctld, which finds what an earlier one has written down."""
        self._start("slurmctld", "-D")

    def start_node(self, node: str) -> None:
        """Start a slurmd."""
        self._start("slurmd", "-D", "-N", node)

    def _start(self, program: str, *options: str) -> None:
        log = (self.folder / f"{program}.out").open("ab")
        path = shutil.which(program, path=self.environment["PATH"]) or program
        with log:
            self.processes[options[-1]] = subprocess.Popen(
                [path, *options],
                env=self.environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self, name: str) -> None:
        """kill -9 of the controller ("-D") or of a node's slurmd, by its name."""
        process = self.processes.pop(name)
        process.kill()
        process.wait()

    def run(self, *command: str, **changed: str) -> str:
        """A command's output."""
        return subprocess.run(
            command,
            env={**self.environment, **changed},
            check=True,
            timeout=PATIENCE,
            text=True,
            stdout=subprocess.PIPE,
        ).stdout

    def states(self) -> dict[str, str]:
        """The states of the jobs that Slurm knows, by id, and of an array's by number too."""
        lines = self.run("squeue", "-h", "-a", "-r", "-t", "all", "-o", "%i|%T").split()
        return dict(line.split("|") for line in lines)

    def clear(self) -> None:
        """End all jobs."""
        self.run("scancel", f"--user={getuser()}", "--signal=KILL", "--full")
        self.run("scancel", f"--user={getuser()}")
        wait_until(lambda: not self.run("squeue", "-h"))

    def stop(self) -> None:
        """Cancel what there is, and end everything that was started here."""
        with suppress(subprocess.SubprocessError):
            self.clear()
        for process in self.processes.values():
            process.send_signal(signal.SIGTERM)
        for process in self.processes.values():
            process.wait(timeout=60)
        pid = self.folder / "munge" / "pid"
        if pid.is_file():
            munged = int(pid.read_text())
            os.kill(munged, signal.SIGTERM)
            wait_until(lambda: not alive(munged))  # it writes its seed at last
