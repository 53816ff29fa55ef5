"""Sweeps on a Ray cluster of several nodes, all of them processes of this machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chaos.processes import PATIENCE, wait_until
from kdbench.records.checkpoint import checkpoint_paths
from kdbench.training.together import train
from support.commands import ROOT
from support.runs import SMALL, assert_same_runs, config, runs

LONG = ["schedule.epochs=60", "schedule.milestones=[]"]
KIND = "T4"  # a name that Ray knows; no node here has one
# A head without CPUs, one node after another in which to train; a line of input kills the first.
CLUSTER = f"""
from ray.cluster_utils import Cluster
head = {{"num_cpus": 0, "include_dashboard": False}}
cluster = Cluster(initialize_head=True, head_node_args=head)
cluster.add_node(num_cpus=1)
node = cluster.add_node(num_cpus=1, resources={{"accelerator_type:{KIND}": 1}})
print(cluster.address, flush=True)
input()
cluster.add_node(num_cpus=1, resources={{"accelerator_type:{KIND}": 1}})
cluster.remove_node(node, allow_graceful=False)
print("killed", flush=True)
input()
cluster.shutdown()
"""


@pytest.mark.long
def test_a_task_whose_node_is_killed_goes_on_elsewhere_from_its_checkpoint(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.chdir(tmp_path)
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "RAY_USAGE_STATS_ENABLED": "0"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    sweep = ["-m", *SMALL, *LONG, "student=resnet8", "method=ce", "hydra/launcher=cohort_ray"]
    sweep.append(f"hydra.launcher.ray.accelerator_type={KIND}")
    with (
        Path("cluster.log").open("w") as log,
        subprocess.Popen(
            [sys.executable, "-c", CLUSTER],
            env=environment,
            **{**pipes, "stderr": log},
            stdin=subprocess.PIPE,
        ) as cluster,
    ):
        try:
            address = cluster.stdout.readline().strip()
            with subprocess.Popen(
                [sys.executable, "-m", "kdbench.train", *sweep],
                env={**environment, "RAY_ADDRESS": address},
                **pipes,
            ) as launcher:
                wait_until(lambda: any(checkpoint_paths(folder) for folder in runs().values()))
                cluster.stdin.write("kill\n")
                cluster.stdin.flush()
                assert cluster.stdout.readline() == "killed\n", Path("cluster.log").read_text()
                out, err = launcher.communicate(timeout=PATIENCE)
        finally:
            cluster.stdin.close()
            cluster.wait(PATIENCE)
    assert launcher.returncode == 0, err
    assert "its Ray task ended without a result" in err
    assert "cohort 2 starts: tried once more" in out
    (folder,) = runs().values()
    rows = len((folder / "metrics.jsonl").read_text().splitlines())
    assert rows == 60, "each epoch once: the second task went on where the first had come to"
    train(config("method=ce", *LONG, "runs_dir=undisturbed"))
    assert_same_runs("undisturbed", "runs")
