"""What starts a run on a cluster, as far as it can be tried without one."""

import os
import pathlib
import re
import signal
import subprocess
import time
import types

import pytest
import yaml
from jax._src.clusters import cloud_tpu_cluster, k8s_cluster, slurm_cluster

LAUNCH = pathlib.Path(__file__).parents[2] / "experiments" / "launch"
JOBSETS = ("jobset.yaml", "jobset_tpu.yaml")
TRAIN = "python -m experiments.train"


def documents(name):
    return list(yaml.safe_load_all((LAUNCH / name).read_text()))


def jobset(name):
    (found,) = (document for document in documents(name) if document["kind"] == "JobSet")
    return found


def job(name):
    (replicated,) = jobset(name)["spec"]["replicatedJobs"]
    assert replicated["replicas"] == 1  # jax takes the index in a job for that of the process
    return replicated["template"]["spec"]


def pod(name):
    return job(name)["template"]["spec"]


def container(name):
    (found,) = pod(name)["containers"]
    return found


def pod_script(name):
    bash, option, script = container(name)["command"]
    assert (bash, option) == ("bash", "-c")
    return script


@pytest.fixture
def stand_in(tmp_path, monkeypatch):
    """``stand_in(name, script)``: a command of that name, before all others."""
    directory = tmp_path / "bin"
    directory.mkdir()
    monkeypatch.setenv("PATH", f"{directory}:{os.environ['PATH']}")

    def make(name, script, directory=directory):
        directory.mkdir(parents=True, exist_ok=True)
        path = directory / name
        path.write_text(f"#!/usr/bin/env bash\n{script}\n")
        path.chmod(0o755)

    return make


def test_nothing_here_hides_the_module_of_the_same_name():
    """``python -m experiments.launch`` is launch.py: a module goes before a namespace package."""
    assert not list(LAUNCH.glob("*.py"))


@pytest.mark.parametrize("name", ["slurm.sbatch", "tpu_pod.sh"])
def test_scripts_are_bash_and_run_training(name):
    subprocess.run(["bash", "-n", str(LAUNCH / name)], check=True)
    assert TRAIN in (LAUNCH / name).read_text()


def directives():
    return dict(
        re.findall(r"^#SBATCH --([\w-]+)=(.*)$", (LAUNCH / "slurm.sbatch").read_text(), re.M)
    )


@pytest.mark.parametrize(
    ("training", "code", "requeued"),
    [
        ("mkdir -p runs/a && touch runs/a/report.json", 0, False),
        ("true", 0, True),  # stopped
        ("exit 1", 1, False),  # failed
    ],
)
def test_slurm_puts_back_what_was_stopped(training, code, requeued, stand_in, tmp_path):
    stand_in("srun", f'printf "%s\\n" "$@" > srun.txt\n{training}')
    stand_in("scontrol", 'echo "$@" > scontrol.txt')
    done = subprocess.run(
        ["bash", str(LAUNCH / "slurm.sbatch"), "digits_mdeq", "runs/a", "--loop.steps", "9"],
        cwd=tmp_path,
        env={**os.environ, "SLURM_JOB_ID": "7", "SLURM_CPUS_PER_TASK": "8"},
    )
    assert done.returncode == code
    command = (tmp_path / "srun.txt").read_text().split()
    want = f"{TRAIN} digits_mdeq --workdir runs/a --loop.steps 9".split()
    assert command[-len(want) :] == want
    assert (tmp_path / "scontrol.txt").exists() == requeued
    if requeued:
        assert (tmp_path / "scontrol.txt").read_text() == "requeue 7\n"


def test_slurm_leaves_time_to_save_and_has_a_process_for_each_gpu():
    options = directives()
    assert options["signal"] == "TERM@120"  # to the processes: no "B:"
    assert options["ntasks-per-node"] == options["gpus-per-node"]
    assert "gpus-per-task" not in options  # would hide the GPUs that jax counts


def test_jax_finds_the_processes_of_slurm(monkeypatch):
    options = directives()
    nodes, tasks = int(options["nodes"]), int(options["ntasks-per-node"])
    last = {
        "SLURM_JOB_ID": "5000",
        "SLURM_STEP_NODELIST": "node[07-08]",
        "SLURM_NTASKS": str(nodes * tasks),
        "SLURM_PROCID": str(nodes * tasks - 1),
        "SLURM_LOCALID": str(tasks - 1),
    }
    for variable, value in last.items():
        monkeypatch.setenv(variable, value)
    cluster = slurm_cluster.SlurmCluster
    assert cluster.is_env_present()
    assert cluster.get_process_count() == 16 and cluster.get_process_id() == 15
    assert cluster.get_local_process_id() == 7
    assert cluster.get_coordinator_address(None, None) == f"node07:{61440 + 5000 - 4096}"


def test_tpu_hosts_run_the_command_as_it_was_given(stand_in, tmp_path):
    stand_in("gcloud", f'printf "%s\\n" "$@" > "{tmp_path}/gcloud.txt"')
    given = ["digits_mdeq", "/runs/one run", "--loop.rtols", "0.1", "0.01"]
    subprocess.run([str(LAUNCH / "tpu_pod.sh"), "v5e", "us-a", *given], check=True)
    *ssh, command = (tmp_path / "gcloud.txt").read_text().splitlines()
    assert ssh == "compute tpus tpu-vm ssh v5e --zone=us-a --worker=all".split()
    stand_in("python", 'pwd; printf "%s\\n" "$@"', tmp_path / "jdeq" / ".venv" / "bin")
    host = subprocess.run(
        ["bash", "-c", command.removeprefix("--command=")],
        env={**os.environ, "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=True,
    )
    where, *argv = host.stdout.splitlines()
    assert where == str(tmp_path / "jdeq")
    assert argv == ["-m", "experiments.train", given[0], "--workdir", *given[1:]]


@pytest.mark.parametrize("name", JOBSETS)
def test_jobsets_have_a_pod_for_each_host(name):
    spec = job(name)
    assert spec["parallelism"] == spec["completions"]
    assert spec["completionMode"] == "Indexed" and spec["backoffLimit"] == 0
    assert jobset(name)["apiVersion"] == "jobset.x-k8s.io/v1alpha2"
    assert jobset(name)["spec"]["network"]["enableDNSHostnames"] is True
    assert jobset(name)["spec"]["failurePolicy"]["maxRestarts"] > 0
    assert pod(name)["restartPolicy"] == "Never"
    assert pod(name)["terminationGracePeriodSeconds"] >= 60
    environment = {variable["name"]: variable["value"] for variable in container(name)["env"]}
    (mount,) = (m for m in container(name)["volumeMounts"] if m["name"] == "runs")
    assert environment["WORKDIR"].startswith(mount["mountPath"] + "/")
    assert {m["name"] for m in container(name)["volumeMounts"]} == {
        volume["name"] for volume in pod(name)["volumes"]
    }


def test_a_tpu_slice_has_as_many_hosts_as_its_topology():
    topology = pod("jobset_tpu.yaml")["nodeSelector"]["cloud.google.com/gke-tpu-topology"]
    rows, columns = map(int, topology.split("x"))
    chips = container("jobset_tpu.yaml")["resources"]["limits"]["google.com/tpu"]
    assert job("jobset_tpu.yaml")["parallelism"] * chips == rows * columns


def test_gpu_pods_may_ask_what_jax_asks():
    account, role, binding, _ = documents("jobset.yaml")
    assert pod("jobset.yaml")["serviceAccountName"] == account["metadata"]["name"]
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    assert binding["subjects"] == [{"kind": "ServiceAccount", "name": account["metadata"]["name"]}]
    allowed = {(*rule["resources"], *rule["verbs"]) for rule in role["rules"]}
    assert allowed == {("pods", "list"), ("jobs", "get")}


@pytest.mark.parametrize("name", JOBSETS)
@pytest.mark.parametrize(
    ("training", "code"),
    [
        ('mkdir -p "$WORKDIR"; touch "$WORKDIR/report.json"', 0),
        ("true", 1),  # stopped: to be started again
        ("exit 2", 2),
    ],
)
def test_a_pod_succeeds_when_the_run_is_finished(name, training, code, stand_in, tmp_path):
    stand_in("python", f'echo "$@"\n{training}')
    environment = {**os.environ, "RUN": "digits_mdeq", "WORKDIR": str(tmp_path / "run")}
    done = subprocess.run(
        ["bash", "-c", pod_script(name)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == code
    assert done.stdout.startswith(f"-m experiments.train digits_mdeq --workdir {tmp_path}/run")


@pytest.mark.parametrize("name", JOBSETS)
def test_a_pod_hands_sigterm_on_and_waits(name, stand_in, tmp_path):
    saving = f'sleep 0.3; touch "{tmp_path}/saved"; exit 0'
    stand_in(
        "python", f"trap '{saving}' TERM\ntouch \"{tmp_path}/started\"\nwhile :; do sleep 0.1; done"
    )
    environment = {**os.environ, "RUN": "digits_mdeq", "WORKDIR": str(tmp_path / "run")}
    shell = subprocess.Popen(["bash", "-c", pod_script(name)], env=environment)
    deadline = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert shell.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    shell.send_signal(signal.SIGTERM)
    assert shell.wait(timeout=60) == 1
    assert (tmp_path / "saved").exists()


def test_jax_finds_the_pods_of_a_gpu_jobset(monkeypatch):
    """With what Kubernetes would answer about the job that JobSet makes of the file."""
    name = jobset("jobset.yaml")["metadata"]["name"]
    made = types.SimpleNamespace(
        metadata=types.SimpleNamespace(
            name=f"{name}-{jobset('jobset.yaml')['spec']['replicatedJobs'][0]['name']}-0",
            labels={"jobset.sigs.k8s.io/jobset-name": name},
        ),
        spec=types.SimpleNamespace(parallelism=job("jobset.yaml")["parallelism"]),
    )
    cluster = k8s_cluster.K8sCluster
    monkeypatch.setattr(cluster, "_job", lambda: made)
    monkeypatch.setattr(cluster, "_pod", lambda: None)
    monkeypatch.setattr(cluster, "_controller", lambda: types.SimpleNamespace(kind="Job"))
    monkeypatch.setenv("JOB_COMPLETION_INDEX", "1")
    assert cluster.get_process_count() == 2 and cluster.get_process_id() == 1
    assert cluster.get_local_process_id() is None  # all GPUs of the host
    assert cluster.get_coordinator_address(None, None) == "jdeq-train-0-0.jdeq:55527"


def test_jax_finds_the_hosts_of_a_tpu_jobset(monkeypatch):
    hosts = job("jobset_tpu.yaml")["parallelism"]
    names = [f"jdeq-tpu-train-0-{host}.jdeq-tpu" for host in range(hosts)]
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", ",".join(names))
    monkeypatch.setenv("TPU_WORKER_ID", "3")
    monkeypatch.setattr(cloud_tpu_cluster, "running_in_cloud_tpu_vm", True)
    monkeypatch.setattr(cloud_tpu_cluster, "get_tpu_env_value_from_metadata", lambda key: None)
    cluster = cloud_tpu_cluster.GkeTpuCluster
    monkeypatch.setattr(cluster, "wait_for_coordinator", lambda *arguments: None)  # looks names up
    assert cluster.is_env_present()
    assert cluster.get_process_count() == 4 and cluster.get_process_id() == 3
    assert cluster.get_coordinator_address(300, None) == f"{names[0]}:8482"
