"""Submits a batch script to a slurmctld and slurmd of its own, on this machine, and waits until the job has trained.

    slurm_check.py JOB.SBATCH      with the folder of `autodist` in PATH; needs root, munge and Slurm (Debian's slurm-wlm)

The node is imaginary but for its name: it claims as many cores as the script asks for. Everything is ended again.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

LIMIT_S = 240


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def running(command: list[str], environment: dict[str, str]) -> Iterator[None]:
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def wait_for(what: str, done: Callable[[], bool], limit_s: float) -> None:
    end = time.monotonic() + limit_s
    while not done():
        if time.monotonic() > end:
            raise SystemExit(f"{what}: not within {limit_s} s")
        time.sleep(0.5)


def configuration(folder: Path, tasks: int, cores: int) -> str:
    host = socket.gethostname().split(".")[0]
    return f"""ClusterName=check
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={free_port()}
SlurmdPort={free_port()}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs={tasks * cores} State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def main() -> None:
    script = Path(sys.argv[1]).resolve()
    asked = dict(re.findall(r"^#SBATCH --([\w-]+)=(\S+)", script.read_text(), re.MULTILINE))
    tasks, cores = int(asked["ntasks-per-node"]), int(asked["cpus-per-task"])
    with tempfile.TemporaryDirectory(prefix="slurm-check-") as name:
        folder = Path(name)
        folder.chmod(0o755)
        for part in ("state", "spool"):
            (folder / part).mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o600)
        (folder / "slurm.conf").write_text(configuration(folder, tasks, cores))
        environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}
        # Where the kernel's control groups are out of reach.
        (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\n")
        munge = ["munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge.sock"]
        munge += [f"--{kind}-file={folder}/munge.{kind}" for kind in ("log", "pid", "seed")]
        with contextlib.ExitStack() as services:
            services.enter_context(running(munge, environment))
            wait_for("munge", (folder / "munge.sock").exists, 20)
            services.enter_context(running(["slurmctld", "-D"], environment))
            services.enter_context(running(["slurmd", "-D"], environment))

            def idle() -> bool:
                seen = subprocess.run(["sinfo", "-h", "-o", "%T"], env=environment, capture_output=True, text=True)
                return seen.stdout.strip() == "idle"

            try:
                wait_for("a node that is ready", idle, 60)
                train(script, environment)
            except BaseException:
                for log in ("slurmctld.log", "slurmd.log"):
                    print(f"--- {log}\n{(folder / log).read_text()[-3000:] if (folder / log).exists() else 'none'}")
                raise


def train(script: Path, environment: dict[str, str]) -> None:
    submitted = subprocess.run(
        ["sbatch", "--parsable", str(script)], env=environment, cwd=script.parent, capture_output=True, text=True
    )
    if submitted.returncode != 0:
        raise SystemExit(f"sbatch refused {script}: {submitted.stderr}")
    job = submitted.stdout.strip()

    def over() -> bool:
        seen = subprocess.run(["squeue", "-h", "-j", job, "-o", "%T"], env=environment, capture_output=True, text=True)
        return not seen.stdout.strip()

    wait_for(f"job {job}", over, LIMIT_S)
    output = script.parent / f"autodist-{job}.out"
    record = script.parent / "run.json"
    if not record.exists():
        raise SystemExit(f"job {job} left no run.json:\n{output.read_text() if output.exists() else ''}")
    losses = [step["loss"] for step in json.loads(record.read_text())["steps"]]
    print(f"ok slurm: job {job} trained {len(losses)} steps, loss {losses[0]:.4f} to {losses[-1]:.4f}")
    assert losses[-1] < losses[0]


main()
