"""Settings: what is accepted, and each refusal's whole message."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from tests.kit.support import ROOT

from holdfast import enrolment
from holdfast.training.jobs import MAX_JOB_SECONDS
from stacks.config import ConfigError, load, schema
from stacks.instances import GPU_FAMILIES, NEWER_GPU_FAMILIES, has_gpu, is_arm
from stacks.settings import MAX_CERTIFICATE_HOURS, MAX_JOB_HOURS

VALID = {
    "cluster": {"name": '"lab"', "environment": '"dev"', "region": '"us-east-1"', "engine": '"mxnet"'},
    "network": {"cidr": '"10.77.0.0/22"', "s3_prefix_list": '"pl-63a5400a"'},
    "scheduler": {"instance_type": '"m7i.large"'},
    "servers": {"instance_type": '"m7i.large"', "max": "2"},
    "workers": {"instance_type": '"g5.xlarge"', "max": "4"},
    "ports": {},
    "limits": {},
    "checkpoints": {},
}

PRIVATE_CA = "arn:aws:acm-pca:us-east-1:111122223333:certificate-authority/12345678-1234-1234-1234-123456789012"
REFUSALS = {
    "a shell over SSH": (
        {"cluster.remote_access": '"ssh"'},
        "[cluster] remote_access must be 'none' or 'session-manager', got 'ssh'; set it to whether operators may open "
        "a recorded shell on a node: none or session-manager",
    ),
    "a volume that EBS does not make": (
        {"workers.scratch_gib": "20000"},
        "[workers] scratch_gib must be between 0 and 16384, got 20000; set it to the size in GiB of an encrypted "
        "volume of their own for scratch files; on the root volume if 0",
    ),
    "zero workers": (
        {"workers.max": "0"},
        "[workers] max must be between 1 and 150, got 0; set it to the most instances that one job may have",
    ),
    "too many servers": (
        {"servers.max": "151"},
        "[servers] max must be between 1 and 150, got 151; set it to the most instances that one job may have",
    ),
    "unknown key": (
        {"workers.maximum": "3"},
        "[workers] maximum is unknown, allowed: instance_type, max, scratch_gib, usd_per_hour (did you mean max?); "
        "remove it or correct its name",
    ),
    "unknown table": (
        {"sheduler.max": "1"},
        "[sheduler] is unknown, allowed: checkpoints, cluster, identity, images, limits, network, ports, predictor, "
        "scheduler, servers, workers (did you mean scheduler?); remove it or correct its name",
    ),
    "missing key": (
        {"cluster.name": None},
        "[cluster] name is missing; set it to the cluster's name, 3 to 32 lower-case letters, digits and hyphens",
    ),
    "missing table": ({"scheduler.instance_type": None}, "[scheduler] is missing; add this table"),
    "a string for a number": (
        {"workers.max": '"4"'},
        "[workers] max must be an integer, got '4' (a string); set it to the most instances that one job may have",
    ),
    "a fraction for a count": (
        {"workers.max": "4.5"},
        "[workers] max must be an integer, got 4.5 (a number); set it to the most instances that one job may have",
    ),
    "a boolean for a number": (
        {"servers.max": "true"},
        "[servers] max must be an integer, got true (a boolean); set it to the most instances that one job may have",
    ),
    "a number for a string": (
        {"cluster.name": "7"},
        "[cluster] name must be a string, got 7 (an integer); set it to the cluster's name, 3 to 32 lower-case "
        "letters, digits and hyphens",
    ),
    "bad cluster name": (
        {"cluster.name": '"Lab"'},
        "[cluster] name must match ^[a-z][a-z0-9-]{1,30}[a-z0-9]$, got 'Lab'; set it to the cluster's "
        "name, 3 to 32 lower-case letters, digits and hyphens",
    ),
    "unknown environment": (
        {"cluster.environment": '"test"'},
        "[cluster] environment must be 'local', 'dev' or 'prod', got 'test'; set it to what kind of place "
        "this is; prod refuses what should not happen there",
    ),
    "unknown engine": (
        {"cluster.engine": '"torch"'},
        "[cluster] engine must be 'mxnet', got 'torch'; set it to the trainer that it runs",
    ),
    "overlapping ports": (
        {"ports.server": "9000", "ports.worker": "9000"},
        "[ports] server must differ from worker, got 9000 for both; each role listens on its own port",
    ),
    "a port that overlaps a default": (
        {"ports.scheduler": "9093"},
        "[ports] scheduler must differ from worker, got 9093 for both; each role listens on its own port",
    ),
    "privileged port": (
        {"ports.scheduler": "443"},
        "[ports] scheduler must be between 1024 and 65535, got 443; set it to the scheduler's port",
    ),
    "cidr too small": (
        {"network.cidr": '"10.77.0.0/27"'},
        "[network] cidr must be a /16 to a /26, got /27; each of the two subnets needs 17 addresses: 7 nodes, "
        "5 for endpoints, 5 that AWS keeps",
    ),
    "cidr too small for its nodes": (
        {"network.cidr": '"10.77.0.0/24"', "workers.max": "150"},
        "[network] cidr must be a /16 to a /23, got /24; each of the two subnets needs 163 addresses: 153 nodes, "
        "5 for endpoints, 5 that AWS keeps",
    ),
    "cidr too big": (
        {"network.cidr": '"10.0.0.0/8"'},
        "[network] cidr must be a /16 to a /26, got /8; each of the two subnets needs 17 addresses: 7 nodes, "
        "5 for endpoints, 5 that AWS keeps",
    ),
    "cidr with host bits": (
        {"network.cidr": '"10.77.0.1/22"'},
        "[network] cidr must be an IPv4 network, got '10.77.0.1/22': 10.77.0.1/22 has host bits set",
    ),
    "public cidr": (
        {"network.cidr": '"8.8.0.0/22"'},
        "[network] cidr must be in 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, got 8.8.0.0/22; "
        "nodes have private addresses only",
    ),
    "bad prefix list": (
        {"network.s3_prefix_list": '"0.0.0.0/0"'},
        "[network] s3_prefix_list must match ^pl-[0-9a-f]{8,17}$, got '0.0.0.0/0'; set it to the region's "
        "prefix list of S3, printed by aws ec2 describe-managed-prefix-lists "
        "--filters Name=prefix-list-name,Values=com.amazonaws.REGION.s3",
    ),
    "production workers without a GPU": (
        {"cluster.environment": '"prod"', "workers.instance_type": '"m7i.large"'},
        "[workers] instance_type must have a GPU where environment is prod, got m7i.large (family m7i); choose one of "
        "the families g4dn, g5, g6, g6e, gr6, p4d, p4de",
    ),
    "servers with a GPU": (
        {"servers.instance_type": '"g5.xlarge"'},
        "[servers] instance_type must have no GPU, got g5.xlarge; only workers compute on GPUs, and this one would "
        "cost and do nothing",
    ),
    "a predictor with a GPU": (
        {"predictor.job": '"digits-1"', "predictor.instance_type": '"p5.48xlarge"'},
        "[predictor] instance_type must have no GPU, got p5.48xlarge; only workers compute on GPUs, and this one would "
        "cost and do nothing",
    ),
    "GPUs that are newer than MXNet": (
        {"workers.instance_type": '"p5.48xlarge"'},
        "[workers] instance_type must have a GPU of compute capability 8.9 or less, got p5.48xlarge (9.0); MXNet 1.9.1 "
        "has no machine code for it: choose one of the families g4dn, g5, g6, g6e, gr6, p4d, p4de",
    ),
    "production that destroys": (
        {"cluster.environment": '"prod"', "cluster.removal": '"destroy"'},
        "[cluster] removal must be retain where environment is prod, got destroy; "
        "keys, checkpoints and models of production are never destroyed with a stack",
    ),
    "Arm instances": (
        {"servers.instance_type": '"m7g.large"'},
        "[servers] instance_type must be x86_64, got m7g.large (Arm); node images and Python packages are built for "
        "x86_64",
    ),
    "log retention that CloudWatch lacks": (
        {"cluster.log_retention_days": "10"},
        "[cluster] log_retention_days must be one of 1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545, 731, "
        "1096, 1827, 2192, 2557, 2922, 3288, 3653, got 10; these are the periods that CloudWatch Logs has",
    ),
    "a budget that the largest job exceeds": (
        {
            "scheduler.usd_per_hour": "1.0",
            "servers.usd_per_hour": "1.0",
            "workers.usd_per_hour": "2.0",
            "limits.usd_per_job": "40",
        },
        "[limits] usd_per_job must be at least 44.00, got 40.00; that is what the largest job of 4 h costs: raise it, "
        "or lower max_hours or a fleet's max",
    ),
    "a budget without prices": (
        {"limits.usd_per_job": "40.0", "workers.usd_per_hour": "2.0"},
        "[limits] usd_per_job needs a usd_per_hour above 0 in [scheduler], [servers] and [workers]; "
        "without prices the budget cannot be held",
    ),
    "a budget without prices on one machine": (
        {"cluster.environment": '"local"', "limits.usd_per_job": "40.0"},
        "[limits] usd_per_job needs a usd_per_hour above 0 in [scheduler], [servers] and [workers]; "
        "without prices the budget cannot be held",
    ),
    "a job of more than a week": (
        {"limits.max_hours": "169"},
        "[limits] max_hours must be between 1 and 168, got 169; set it to the longest that a job may run; certificates "
        "are renewed while it does",
    ),
    "certificates without a life": (
        {"identity.certificate_hours": "0"},
        "[identity] certificate_hours must be between 1 and 168, got 0; set it to how many hours a node's certificate "
        "lives; it is renewed after two thirds of them",
    ),
    "certificates for a year": (
        {"identity.certificate_hours": "8760"},
        "[identity] certificate_hours must be between 1 and 168, got 8760; set it to how many hours a node's "
        "certificate lives; it is renewed after two thirds of them",
    ),
    "an overlap with no CA": (
        {"identity.ca_overlap": "true"},
        "[identity] ca_overlap must be false where ca_generation is 1, got true; there is no CA before the first: "
        "raise ca_generation by one to rotate",
    ),
    "a CA before the first": (
        {"identity.ca_generation": "0"},
        "[identity] ca_generation must be between 1 and 99, got 0; set it to which of the cluster's own CAs signs; "
        "raise it by one to rotate (docs/ca-rotation.md)",
    ),
    "two kinds of CA": (
        {"identity.ca_generation": "2", "identity.private_ca_arn": f'"{PRIVATE_CA}"'},
        "[identity] private_ca_arn must be absent where ca_generation or ca_overlap is set, got both; they are for "
        "a CA of the cluster's own: remove one of them",
    ),
    "a private CA elsewhere": (
        {"identity.private_ca_arn": f'"{PRIVATE_CA.replace("us-east-1", "eu-west-1")}"'},
        "[identity] private_ca_arn must be in the cluster's region, us-east-1, got eu-west-1; AWS Private CA signs in "
        "its own region only",
    ),
    "a private CA that is none": (
        {"identity.private_ca_arn": '"arn:aws:kms:us-east-1:1:key/x"'},
        "[identity] private_ca_arn must match ^arn:aws[a-z-]*:acm-pca:[a-z0-9-]+:\\d{12}:certificate-authority/"
        "[0-9a-f-]{36}$, got 'arn:aws:kms:us-east-1:1:key/x'; set it to the ARN of an existing root CA in AWS Private "
        "CA, which then signs; a CA of the cluster's own if absent",
    ),
    "predictions with every digit": (
        {"predictor.digits": "17"},
        "[predictor] digits must be between 1 and 3, got 17; set it to how many decimals of a probability leave "
        "(docs/predictions.md)",
    ),
    "logits": (
        {"predictor.output": '"logits"'},
        "[predictor] output must be 'labels', 'top-k' or 'probabilities', got 'logits'; set it to what leaves: labels, "
        "top-k or probabilities (rounded)",
    ),
    "predictions for everybody": (
        {"predictor.client_ranges": '["0.0.0.0/0"]'},
        "[predictor] client_ranges must be in 10.0.0.0/8, 172.16.0.0/12, 192.168.0.0/16, got 0.0.0.0/0; the endpoint "
        "is private",
    ),
    "a client that is no network": (
        {"predictor.client_ranges": '["app"]'},
        "[predictor] client_ranges must be IPv4 networks, got 'app': Expected 4 octets in 'app'",
    ),
    "clients that are no list": (
        {"predictor.client_ranges": '"10.0.0.0/8"'},
        "[predictor] client_ranges must be an array, got '10.0.0.0/8' (a string); set it to private IPv4 ranges that "
        "may connect, such as 10.20.0.0/16; nobody if absent",
    ),
    "requests that no minute holds": (
        {"predictor.rows_per_minute": "10"},
        "[predictor] rows_per_minute must be between 2 * batch_rows (64) and rows_per_day (1000), got 10; half of a "
        "limit is free at once, the rest as time goes by",
    ),
    "an Arm predictor": (
        {"predictor.instance_type": '"m7g.large"'},
        "[predictor] instance_type must be x86_64, got m7g.large (Arm); node images and Python packages are built for "
        "x86_64",
    ),
    "no enrolment at all": (
        {"limits.enrolment_concurrency": "0"},
        "[limits] enrolment_concurrency must be between 1 and 1000, got 0; set it to how many executions of the "
        "enrolment function are set aside, also the most at once; none if absent, because a new account's quota "
        "allows none",
    ),
    "no checkpoint kept": (
        {"checkpoints.keep_last": "0"},
        "[checkpoints] keep_last must be between 1 and 1000, got 0; set it to how many of a job are kept, "
        "the newest ones, applied by the job's own writer after every checkpoint; the function that works at rest "
        "comes later",
    ),
    "a scheduler never silent": (
        {"limits.heartbeat_seconds": "5"},
        "[limits] heartbeat_seconds must be between 30 and 3600, got 5; set it to how long a scheduler may be silent, "
        "its boot included, before the job is stopped",
    ),
    "silence longer than a job": (
        {"limits.heartbeat_seconds": "3600", "limits.max_hours": "1"},
        "[limits] heartbeat_seconds must be less than max_hours (3600 s), got 3600; "
        "a dead scheduler is found before the job's deadline",
    ),
    "no time to be slow": (
        {"limits.lost_seconds": "9"},
        "[limits] lost_seconds must be between 10 and 300, got 9; set it to within how many seconds a lost process, "
        "node or connection is noticed; slower peers count as lost",
    ),
    "no time to start": (
        {"limits.join_seconds": "59"},
        "[limits] join_seconds must be between 60 and 86400, got 59; set it to within how many seconds all scripts of "
        "a job must have made their KVStore; else it starts again",
    ),
    "a worker lost after the scheduler": (
        {"limits.lost_seconds": "60", "limits.heartbeat_seconds": "60"},
        "[limits] lost_seconds must be less than heartbeat_seconds (60 s), got 60; "
        "a lost worker is found before a lost scheduler",
    ),
    "restarts without end": (
        {"limits.max_restarts": "101"},
        "[limits] max_restarts must be between 0 and 100, got 101; set it to the most often that a job may go on from "
        "its last checkpoint after a failure",
    ),
    "a negative price": (
        {"workers.usd_per_hour": "-1.0"},
        "[workers] usd_per_hour must be between 0 and 1000, got -1.0; set it to what one costs per hour on demand, "
        "for the job's budget",
    ),
    "an infinite budget": (
        {"limits.usd_per_job": "inf"},
        "[limits] usd_per_job must be between 0 and 1000000, got inf; set it to the most that a job may cost, from "
        "max, max_hours and usd_per_hour; none if absent",
    ),
}


def write(root: Path, changes: dict[str, str | None] | None = None, name: str = "lab") -> Path:
    tables = {table: dict(values) for table, values in VALID.items()}
    for place, value in (changes or {}).items():
        table, key = place.split(".")
        if value is None:
            del tables[table][key]
        else:
            tables.setdefault(table, {})[key] = value
    path = root / "settings" / f"{name}.toml"
    path.parent.mkdir(exist_ok=True)
    path.write_text(
        "\n".join(
            "\n".join([f"[{table}]", *(f"{key} = {value}" for key, value in values.items())])
            for table, values in tables.items()
            if values
        )
    )
    return root


@pytest.mark.parametrize("name", ["local", "dev", "prod"])
def test_settings_of_the_repository_are_accepted(name: str) -> None:
    assert load(name).cluster.environment == name


@pytest.mark.parametrize("case", REFUSALS)
def test_impossible_settings_are_refused(case: str, tmp_path: Path) -> None:
    changes, message = REFUSALS[case]
    with pytest.raises(ConfigError) as refusal:
        load("lab", root=write(tmp_path, changes))
    assert str(refusal.value) == f"settings/lab.toml: {message}"


def test_the_table_of_refusals_starts_from_accepted_settings(tmp_path: Path) -> None:
    assert load("lab", root=write(tmp_path)).workers.max == 4


def test_every_problem_is_reported_at_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as refusal:
        load("lab", root=write(tmp_path, {"workers.max": "0", "ports.server": "1"}))
    assert [line.split(" must")[0] for line in str(refusal.value).splitlines()] == [
        "settings/lab.toml: [workers] max",
        "settings/lab.toml: [ports] server",
    ]


def test_unknown_settings_name_is_refused_with_a_suggestion(tmp_path: Path) -> None:
    write(tmp_path, name="prod")
    with pytest.raises(ConfigError) as refusal:
        load("prd", root=write(tmp_path))
    assert str(refusal.value) == (
        "-c settings must be one of lab, prod, got 'prd' (did you mean prod?); each is a file in settings/"
    )


@pytest.mark.parametrize("name", ["../app", "/etc/passwd", "settings/dev", ""])
def test_settings_name_is_never_a_path(name: str) -> None:
    with pytest.raises(ConfigError, match="must be one of dev, local, prod"):
        load(name)


def test_invalid_toml_is_refused_with_its_line(tmp_path: Path) -> None:
    write(tmp_path)
    (tmp_path / "settings/lab.toml").write_text("[cluster]\nname = \n")
    with pytest.raises(ConfigError) as refusal:
        load("lab", root=tmp_path)
    assert str(refusal.value) == (
        "settings/lab.toml: not valid TOML: Invalid value (at line 2, column 8); see toml.io for the format"
    )


def test_settings_cannot_be_changed_after_they_were_checked() -> None:
    with pytest.raises(ValueError, match="frozen"):
        load("dev").workers.max = 100


def test_budget_of_a_job_is_its_largest_and_longest(tmp_path: Path) -> None:
    prices = {f"{table}.usd_per_hour": "1.5" for table in ("scheduler", "servers", "workers")}
    settings = load("lab", root=write(tmp_path, {**prices, "limits.max_hours": "2"}))
    assert settings.usd_per_job == (1 + 2 + 4) * 1.5 * 2


def test_schema_in_the_repository_is_current() -> None:
    assert (ROOT / "settings/schema.json").read_text() == schema(), (
        "run PYTHONPATH=constructs:node .venv/bin/python -m stacks.config --schema > settings/schema.json"
    )


@pytest.mark.parametrize("name", ["local", "dev", "prod"])
def test_settings_name_their_schema_for_editors(name: str) -> None:
    assert (ROOT / f"settings/{name}.toml").read_text().startswith("#:schema ./schema.json\n")


def test_the_longest_job_is_what_the_kit_allows() -> None:
    assert MAX_JOB_HOURS * 3600 == MAX_JOB_SECONDS


def test_the_longest_certificate_is_what_the_kit_allows() -> None:
    assert MAX_CERTIFICATE_HOURS == enrolment.MAX_CERTIFICATE_HOURS


def test_a_job_may_outlive_its_nodes_certificates(tmp_path: Path) -> None:
    settings = load("lab", root=write(tmp_path, {"limits.max_hours": "168", "identity.certificate_hours": "1"}))
    assert (settings.limits.max_hours, settings.identity.certificate_hours) == (168, 1)


#: Their GPUs are not driven by the image's driver.
NOT_DRIVEN = ["p3.2xlarge", "p3dn.24xlarge", "g6f.large", "gr6f.4xlarge", "g4ad.xlarge", "trn1.2xlarge", "inf2.xlarge"]


@pytest.mark.parametrize("instance_type", NOT_DRIVEN)
def test_production_workers_whose_gpu_the_image_does_not_drive_are_refused(instance_type: str, tmp_path: Path) -> None:
    changes: dict[str, str | None] = {
        "cluster.environment": '"prod"',
        "workers.instance_type": f'"{instance_type}"',
    }
    with pytest.raises(ConfigError, match=f"must have a GPU where environment is prod, got {instance_type} "):
        load("lab", root=write(tmp_path, changes))


GPUS = {"g4dn.xlarge": True, "p4d.24xlarge": True, "p5.48xlarge": False, "m7i.large": False, "g4ad.xlarge": False}


#: What MXNet's CUDA build and the wheels around it are, read from them by tests/node/engine/gpu/record.py.
LIBRARIES = json.loads((ROOT / "tests/node/engine/gpu/libraries.json").read_text())


@pytest.mark.parametrize("name", GPU_FAMILIES)
def test_mxnet_has_machine_code_for_every_gpu_that_workers_may_have(name: str) -> None:
    assert runs_on(GPU_FAMILIES[name])


@pytest.mark.parametrize("name", NEWER_GPU_FAMILIES)
def test_mxnet_has_no_code_for_the_gpus_that_are_refused(name: str) -> None:
    assert not runs_on(NEWER_GPU_FAMILIES[name])


def runs_on(capability: float) -> bool:
    """Machine code runs on GPUs of its major capability and the same or a later minor one; PTX on all later GPUs.

    Source: NVIDIA, "CUDA C++ programming guide", sections "Binary compatibility" and "PTX compatibility".
    """
    wanted = round(capability * 10)
    ptx, code = LIBRARIES["mxnet"]["ptx"], LIBRARIES["mxnet"]["machine code"]
    return any(made <= wanted for made in ptx) or any(made <= wanted and made // 10 == wanted // 10 for made in code)


@pytest.mark.parametrize("instance_type", GPUS)
def test_gpu_is_known_by_the_family(instance_type: str) -> None:
    assert has_gpu(instance_type) is GPUS[instance_type]


ARMS = {"m7g.large": True, "c7gn.large": True, "g5g.xlarge": True, "a1.large": True, "p6e-gb200.36xlarge": True}
ARMS |= {"g5.xlarge": False, "g6e.xlarge": False, "gr6.4xlarge": False, "m7i.large": False, "p4d.24xlarge": False}


@pytest.mark.parametrize("instance_type", ARMS)
def test_arm_is_known_by_the_family(instance_type: str) -> None:
    assert is_arm(instance_type) is ARMS[instance_type]


def test_app_reports_a_refusal_in_one_line_without_a_traceback() -> None:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": "constructs:node", "HOME": os.environ.get("HOME", "/")}
    result = subprocess.run(
        [sys.executable, "app.py"],
        cwd=ROOT,
        env={**environment, "CDK_CONTEXT_JSON": '{"settings": "staging"}'},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (result.returncode, result.stdout, result.stderr) == (
        1,
        "",
        "error: -c settings must be one of dev, local, prod, got 'staging'; each is a file in settings/\n",
    )
