"""Training on a cluster: what Kubeflow Trainer, Argo and SkyPilot are given, and that our commands take it."""

import json
import re
import shlex
import shutil
import subprocess
import sys
from importlib.metadata import distribution

import pytest
import yaml
from jsonschema import Draft202012Validator

from pipeline.commands.cli import build_parser
from pipeline.commands.options import settings_with_parameters
from pipeline.distill.settings import DistillSettings
from pipeline.runs.run import Stages, start

from ..conftest import strict
from .conftest import ROOT

FOLDER = ROOT / "deploy" / "training"
DOCKERFILE = (FOLDER / "Dockerfile").read_text()
(RUNTIME,) = yaml.safe_load_all((FOLDER / "runtime.yaml").read_text())
(TRAIN_JOB,) = yaml.safe_load_all((FOLDER / "trainjob.yaml").read_text())
(WORKFLOW,) = yaml.safe_load_all((FOLDER / "workflow.yaml").read_text())
SKY = yaml.safe_load((FOLDER / "sky.yaml").read_text())
TEMPLATES = {one["name"]: one for one in WORKFLOW["spec"]["templates"]}
PARAMETERS = {one["name"]: one["value"] for one in WORKFLOW["spec"]["arguments"]["parameters"]}
TASKS = TEMPLATES["stages"]["dag"]["tasks"]


def filled(text, **inputs):
    """A text of the workflow as Argo fills it in: a placeholder that nobody fills is an error."""
    known = {f"workflow.parameters.{name}": value for name, value in PARAMETERS.items()}
    known |= {"workflow.name": "stillmotion-x7k2p"} | {f"inputs.parameters.{name}": one for name, one in inputs.items()}
    return re.sub(r"{{([^}]*)}}", lambda found: known[found[1]], text)


def stage_of(task):
    (argument,) = task["arguments"]["parameters"]
    return argument["value"]


@pytest.fixture(scope="module")
def train_jobs():
    """The one that stands alone, and that of the workflow."""
    return [TRAIN_JOB, yaml.safe_load(filled(TEMPLATES["train"]["resource"]["manifest"]))]


def test_what_the_cluster_is_given_is_what_its_schemas_take(kustomize, check, train_jobs):
    made = kustomize(FOLDER)
    assert {one["kind"] for one in made} >= {"PersistentVolumeClaim", "TrainingRuntime", "WorkflowTemplate", "Role"}
    for one in [*made, *train_jobs]:
        check(one)
    assert {one["metadata"]["namespace"] for one in made} == {"training"}
    (binding,) = [one for one in made if one["kind"] == "RoleBinding"]
    assert [subject["namespace"] for subject in binding["subjects"]] == ["training"]
    accounts = {one["metadata"]["name"] for one in made if one["kind"] == "ServiceAccount"}
    assert WORKFLOW["spec"]["serviceAccountName"] in accounts


def test_pods_within_are_what_kubernetes_takes_and_can_do_no_more_than_they_need(check):
    (job,) = RUNTIME["spec"]["template"]["spec"]["replicatedJobs"]
    check({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "node"}, "spec": job["template"]["spec"]})
    trained = job["template"]["spec"]["template"]["spec"]
    stage = json.loads(filled(json.dumps(TEMPLATES["stage"]["container"]), stage="01_teacher"))
    whole = {"restartPolicy": "Never", "containers": [{"name": "main", **stage}]}
    whole |= {name: WORKFLOW["spec"][name] for name in ("securityContext", "volumes")}
    check({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "stage"}, "spec": whole})
    for pod in (trained, whole):
        assert pod["securityContext"]["runAsNonRoot"]
        (container,) = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"]
        assert f"\nUSER {pod['securityContext']['runAsUser']}:" in DOCKERFILE
        assert {one["name"] for one in container["volumeMounts"]} == {one["name"] for one in pod["volumes"]}
        mounts = {one["name"]: one["mountPath"] for one in container["volumeMounts"]}
        assert f"BENTOML_HOME={mounts['training']}/" in DOCKERFILE


def test_a_train_job_waits_in_a_queue_for_as_many_gpus_as_it_has_processes(train_jobs):
    for one in train_jobs:
        assert one["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "training"
        assert one["spec"]["runtimeRef"]["name"] == RUNTIME["metadata"]["name"]
        trainer = one["spec"]["trainer"]
        assert trainer["numNodes"] == 2
        assert trainer["resourcesPerNode"]["limits"]["nvidia.com/gpu"] == str(trainer["numProcPerNode"])


def parsed(arguments):
    """What `python -m pipeline` makes of them; wrong use fails the test."""
    parser = build_parser()
    options = parser.parse_args(arguments)
    options.usage_error = parser.error
    return options


def after_torchrun(arguments):
    from torch.distributed.run import get_args_parser

    launch = get_args_parser().parse_args(arguments)
    assert (launch.module, launch.training_script) == (True, "pipeline")
    return launch, launch.training_script_args


def commands_of(train_jobs):
    for one in train_jobs:
        assert one["spec"]["trainer"]["command"] == ["torchrun"]
        yield after_torchrun(one["spec"]["trainer"]["args"])[1]
    variables = {"SKYPILOT_NUM_NODES": "2", "SKYPILOT_NUM_GPUS_PER_NODE": "8", "SKYPILOT_NODE_RANK": "1"}
    variables |= {"SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2"} | SKY["envs"]
    words = ["sh", "-c", 'set -f; torchrun() { printf "%s\\n" "$@"; }; ' + SKY["run"].replace(".venv/bin/", "")]
    said = subprocess.run(words, env=variables | {"PATH": "/usr/bin:/bin"}, capture_output=True, text=True, check=True)
    launch, command = after_torchrun(said.stdout.removesuffix("\n").split("\n"))
    assert (launch.nnodes, launch.nproc_per_node, launch.node_rank, launch.master_addr) == ("2", "8", 1, "10.0.0.1")
    yield command


def test_our_command_takes_what_torchrun_is_given(train_jobs):
    seen = 0
    for command in commands_of(train_jobs):
        options = parsed(command)
        settings = settings_with_parameters(options, DistillSettings(), of="distill")
        assert settings.student_steps == 4
        assert settings.updates == 2000
        assert str(options.out).startswith("/training/")
        seen += 1
    assert seen == 3


def test_steps_are_stages_of_one_run_in_the_order_of_the_notebooks(tmp_path, capsys):
    (trained,) = [task for task in TASKS if task["template"] == "train"]
    steps = [task for task in TASKS if task["template"] == "stage"]
    assert [stage_of(task) for task in steps] == ["01_teacher", "02_optimize", "03_distill", "04_package"]
    # Each begins when the one before it is done, and the student is trained before 03 judges it.
    assert [task.get("depends") for task in TASKS] == [None, *(task["name"] for task in TASKS[:-1])]
    assert TASKS.index(trained) == 2

    folders = set()
    for task in steps:
        container = TEMPLATES["stage"]["container"]
        options = parsed([filled(text, stage=stage_of(task)) for text in container["args"]])
        given = dict(options.parameters)
        stages = Stages(options.only, options.until)
        folders.add(start(options.preset, options.teacher, tmp_path, given, options.name, stages))
    assert [folder.name for folder in folders] == ["stillmotion-x7k2p"]
    assert capsys.readouterr().err == ""
    (student,) = (value for name, value in options.parameters if name == "trained")
    command = yaml.safe_load(filled(TEMPLATES["train"]["resource"]["manifest"]))["spec"]["trainer"]["args"]
    assert f"--out={student.removesuffix('/student')}" in command


def test_argo_can_read_how_the_train_job_ended():
    # It reads a condition as a selector of labels, whose keys have no brackets, and looks the key up as a path.
    resource = TEMPLATES["train"]["resource"]
    for condition in (resource["successCondition"], resource["failureCondition"]):
        key, _, _ = condition.split()
        assert re.fullmatch(r"[A-Za-z0-9][-A-Za-z0-9_.]*[A-Za-z0-9]", key)
        assert key.startswith("status.jobsStatus.0.")
    assert len(RUNTIME["spec"]["template"]["spec"]["replicatedJobs"]) == 1


def test_skypilot_takes_its_task_and_volume():
    schema = json.loads((ROOT / "tests" / "deploy" / "skypilot-task.json").read_text())
    volume = yaml.safe_load((FOLDER / "sky-volume.yaml").read_text())
    for kind, given in ((schema, SKY), (schema["$defs"]["volume"], volume)):
        Draft202012Validator(strict(kind)).validate(given)
    assert SKY["volumes"] == {"/training": volume["name"]}


def packages():
    extras = shlex.split(re.search(r"for extra in ([a-z ]+);", DOCKERFILE)[1])
    script = ROOT / "deploy" / "container" / "packages.py"
    for extra in extras:
        done = subprocess.run([sys.executable, script, extra], cwd=ROOT, capture_output=True, text=True, check=True)
        yield from (line for line in done.stdout.splitlines() if not line.startswith("stillmotion["))


def test_the_image_installs_what_the_extras_ask_for():
    names = {re.match(r"[A-Za-z0-9._-]+", line)[0] for line in packages()}
    assert names >= {"torch", "papermill", "peft", "opencv-python-headless", "sqlalchemy"}
    ours = {one.partition(";")[0].strip() for one in distribution("stillmotion").requires if "pipeline" in one}
    wanted = {re.match(r"[A-Za-z0-9._-]+", one)[0] for one in ours}
    assert names >= wanted - {"stillmotion"}


def test_the_folders_of_the_image_are_enough(tmp_path):
    for source, target in re.findall(r"^COPY (\w+) /app/src/(\w+)$", DOCKERFILE, re.MULTILINE):
        shutil.copytree(ROOT / source, tmp_path / target, ignore=shutil.ignore_patterns("*.safetensors"))
    words = [sys.executable, "-m", "pipeline", "run", "--only", "05_capacity", "--runs", str(tmp_path / "runs")]
    clean = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(words, cwd=tmp_path, env=clean, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "the preset has 01_teacher, 02_optimize, 03_distill, 04_package" in done.stderr
