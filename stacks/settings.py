"""The model of a settings file: every key, its type, its bounds, and what it is for.

A field's description is what an editor shows and what a refusal advises.
"""

from enum import StrEnum
from ipaddress import IPv4Network
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, model_validator

from holdfast_node.contract.documents import (
    DEFAULT_JOIN_SECONDS,
    DEFAULT_LOST_SECONDS,
    DEFAULT_MAX_RESTARTS,
    JOB_ID_PATTERN,
    MAX_DIGITS,
    MAX_RESTARTS,
    METRIC_PATTERN,
    MIN_JOIN_SECONDS,
    MIN_LOST_SECONDS,
    Output,
    RemoteAccess,
)
from holdfast_node.contract.roles import (
    CLUSTER_PATTERN,
    DEFAULT_PORTS,
    MAX_NODES_PER_ROLE,
    PREDICTOR_PORT,
    PRIVATE_RANGES,
    Role,
)
from stacks.instances import (
    GPU_FAMILIES,
    INSTANCE_TYPE_PATTERN,
    NEWER_GPU_FAMILIES,
    family,
    has_gpu,
    is_arm,
)

#: The first four addresses and the last of every subnet (VPC user guide, "Subnet sizing").
RESERVED_ADDRESSES = 5
#: Four interface endpoints and one mount target in every subnet.
FIXED_ADDRESSES = 5
#: Two more interface endpoints where operators may open sessions.
SESSION_ADDRESSES = 2
#: A week, as in holdfast.training.jobs (MAX_JOB_SECONDS).
MAX_JOB_HOURS = 168
#: A week, as in holdfast.enrolment (MAX_CERTIFICATE_HOURS).
MAX_CERTIFICATE_HOURS = 168
#: What CloudWatch Logs accepts (CloudWatch Logs API, PutRetentionPolicy).
LOG_RETENTION_DAYS = (
    *(1, 3, 5, 7, 14, 30, 60, 90, 120, 150, 180, 365, 400, 545),
    *(731, 1096, 1827, 2192, 2557, 2922, 3288, 3653),
)


_APPLIED = "applied by the job's own writer after every checkpoint; the function that works at rest comes later"


class Environment(StrEnum):
    """What kind of place a deployment is."""

    LOCAL = "local"
    DEV = "dev"
    PROD = "prod"


class Removal(StrEnum):
    """What happens to keys, buckets, checkpoints and logs when their stack is destroyed."""

    RETAIN = "retain"
    DESTROY = "destroy"


class Engine(StrEnum):
    """Which trainer the cluster runs."""

    MXNET = "mxnet"


class SettingError(ValueError):
    """A value that is well formed and impossible: `[section] key must be …, got …; …`."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


InstanceType = Annotated[str, Field(pattern=f"^{INSTANCE_TYPE_PATTERN.pattern}$", examples=["m7i.large"])]
ScratchSize = Annotated[int, Field(ge=0, le=16384)]
Price = Annotated[float, Field(ge=0, le=1000)]
NodeCount = Annotated[int, Field(ge=1, le=MAX_NODES_PER_ROLE)]
Port = Annotated[int, Field(ge=1024, le=65535)]


class Cluster(_Section):
    """What the cluster is."""

    name: str = Field(
        pattern=f"^{CLUSTER_PATTERN.pattern}$",
        description="the cluster's name, 3 to 32 lower-case letters, digits and hyphens",
    )
    environment: Environment = Field(
        strict=False, description="what kind of place this is; prod refuses what should not happen there"
    )
    region: str = Field(pattern=r"^[a-z]{2}(-[a-z]+)+-\d$", description="the AWS region, such as us-east-1")
    engine: Engine = Field(strict=False, description="the trainer that it runs")
    removal: Removal = Field(
        default=Removal.RETAIN,
        strict=False,
        description="what destroying a stack does to keys, buckets, checkpoints and logs",
    )
    dedicated_tenancy: bool = Field(
        default=False,
        description="whether instances run on hardware that no other account shares, at a higher price",
    )
    remote_access: RemoteAccess = Field(
        default=RemoteAccess.NONE,
        strict=False,
        description="whether operators may open a recorded shell on a node: none or session-manager",
    )
    log_retention_days: int = Field(
        default=365,
        json_schema_extra={"enum": list(LOG_RETENTION_DAYS)},
        description="how many days logs are kept",
    )


class Network(_Section):
    """Where the nodes live."""

    cidr: str = Field(description="the VPC's private IPv4 range, such as 10.77.0.0/22")
    s3_prefix_list: str = Field(
        pattern=r"^pl-[0-9a-f]{8,17}$",
        description="the region's prefix list of S3, printed by aws ec2 describe-managed-prefix-lists "
        "--filters Name=prefix-list-name,Values=com.amazonaws.REGION.s3",
    )


class Scheduler(_Section):
    """The one scheduler of a job."""

    instance_type: InstanceType = Field(description="its EC2 instance type, x86_64")
    usd_per_hour: Price = Field(default=0.0, description="what one costs per hour on demand, for the job's budget")


class Fleet(_Section):
    """Servers or workers."""

    instance_type: InstanceType = Field(description="their EC2 instance type, x86_64")
    max: NodeCount = Field(description="the most instances that one job may have")
    scratch_gib: ScratchSize = Field(
        default=64,
        description="the size in GiB of an encrypted volume of their own for scratch files; on the root volume if 0",
    )
    usd_per_hour: Price = Field(default=0.0, description="what one costs per hour on demand, for the job's budget")


class Ports(_Section):
    """The port of each role; the security groups open these and no others."""

    scheduler: Port = Field(default=DEFAULT_PORTS[Role.SCHEDULER], description="the scheduler's port")
    server: Port = Field(default=DEFAULT_PORTS[Role.SERVER], description="the servers' port")
    worker: Port = Field(default=DEFAULT_PORTS[Role.WORKER], description="the workers' port")


class Best(StrEnum):
    """Which value of a metric is the best."""

    LOWEST = "lowest"
    HIGHEST = "highest"


class Checkpoints(_Section):
    """Which checkpoints of a job are kept: what its writer applies, unless the script says otherwise."""

    keep_last: Annotated[int, Field(ge=1, le=1000)] = Field(
        default=3, description=f"how many of a job are kept, the newest ones, {_APPLIED}"
    )
    max_age_days: Annotated[int, Field(ge=1, le=3650)] = Field(
        default=30, description=f"how many days one is kept; the newest and the best outlive that; {_APPLIED}"
    )
    keep_best: Annotated[int, Field(ge=0, le=100)] = Field(
        default=1, description=f"how many are kept besides, the best ones by best_metric, {_APPLIED}"
    )
    best_metric: str = Field(
        default="loss",
        pattern=f"^{METRIC_PATTERN.pattern}$",
        description="the metric that says which checkpoints are the best, by the name that scripts save it under",
    )
    best: Best = Field(default=Best.LOWEST, strict=False, description="which value of best_metric is the best")


class Limits(_Section):
    """What no job may exceed."""

    max_hours: Annotated[int, Field(ge=1, le=MAX_JOB_HOURS)] = Field(
        default=4, description="the longest that a job may run; certificates are renewed while it does"
    )
    usd_per_job: Annotated[float, Field(ge=0, le=1_000_000)] | None = Field(
        default=None, description="the most that a job may cost, from max, max_hours and usd_per_hour; none if absent"
    )
    heartbeat_seconds: Annotated[int, Field(ge=30, le=3600)] = Field(
        default=600, description="how long a scheduler may be silent, its boot included, before the job is stopped"
    )
    lost_seconds: Annotated[int, Field(ge=MIN_LOST_SECONDS, le=300)] = Field(
        default=DEFAULT_LOST_SECONDS,
        description="within how many seconds a lost process, node or connection is noticed; slower peers count as lost",
    )
    join_seconds: Annotated[int, Field(ge=MIN_JOIN_SECONDS, le=86_400)] = Field(
        default=DEFAULT_JOIN_SECONDS,
        description="within how many seconds all scripts of a job must have made their KVStore; else it starts again",
    )
    max_restarts: Annotated[int, Field(ge=0, le=MAX_RESTARTS)] = Field(
        default=DEFAULT_MAX_RESTARTS,
        description="the most often that a job may go on from its last checkpoint after a failure",
    )
    enrolment_concurrency: Annotated[int, Field(ge=1, le=1000)] | None = Field(
        default=None,
        description="how many executions of the enrolment function are set aside, also the most at once; none if "
        "absent, because a new account's quota allows none",
    )


class Identity(_Section):
    """The nodes' certificates."""

    certificate_hours: Annotated[int, Field(ge=1, le=MAX_CERTIFICATE_HOURS)] = Field(
        default=24, description="how many hours a node's certificate lives; it is renewed after two thirds of them"
    )
    ca_generation: Annotated[int, Field(ge=1, le=99)] = Field(
        default=1, description="which of the cluster's own CAs signs; raise it by one to rotate (docs/ca-rotation.md)"
    )
    ca_overlap: bool = Field(
        default=False, description="whether nodes also trust the CA before ca_generation: true while a rotation lasts"
    )
    private_ca_arn: str | None = Field(
        default=None,
        pattern=r"^arn:aws[a-z-]*:acm-pca:[a-z0-9-]+:\d{12}:certificate-authority/[0-9a-f-]{36}$",
        description="the ARN of an existing root CA in AWS Private CA, which then signs; a CA of the cluster's own if "
        "absent",
    )


class Images(_Section):
    """What instances boot from: AWS's image, or one that has installed already (docs/golden-image.md)."""

    pipeline: bool = Field(
        default=False,
        description="whether there is a stack that bakes such images; its endpoints cost money while it is there",
    )
    baked: bool = Field(
        default=False,
        description="whether nodes boot the image that was baked last before a deployment; bake one first",
    )


class Predictor(_Section):
    """The nodes that serve a model, if there are any; their group is at zero until somebody raises it."""

    job: str | None = Field(
        default=None,
        pattern=f"^{JOB_ID_PATTERN.pattern}$",
        description="the job whose signed model is served; there is no predictor if absent",
    )
    instance_type: InstanceType = Field(default="m7i.large", description="their EC2 instance type, x86_64")
    max: NodeCount = Field(default=1, description="the most instances that the group may be raised to")
    port: Port = Field(default=PREDICTOR_PORT, description="the endpoint's port")
    client_ranges: list[str] = Field(
        default=[], description="private IPv4 ranges that may connect, such as 10.20.0.0/16; nobody if absent"
    )
    client_ca: str = Field(
        default="",
        description="the certificate (PEM) of the authority that clients' certificates come from; the cluster's own CA "
        "if absent",
    )
    output: Output = Field(
        default=Output.LABELS, strict=False, description="what leaves: labels, top-k or probabilities (rounded)"
    )
    digits: Annotated[int, Field(ge=1, le=MAX_DIGITS)] = Field(
        default=2, description="how many decimals of a probability leave (docs/predictions.md)"
    )
    top_k: Annotated[int, Field(ge=1, le=100)] = Field(default=3, description="how many labels leave with top-k")
    batch_rows: Annotated[int, Field(ge=1, le=1024)] = Field(default=32, description="the most rows of one request")
    rows_per_minute: Annotated[int, Field(ge=2, le=1_000_000)] = Field(
        default=120, description="the most rows that one client is answered in a minute, at least twice batch_rows"
    )
    rows_per_day: Annotated[int, Field(ge=2, le=1_000_000_000)] = Field(
        default=1_000, description="the most rows that one client is answered in a day, at least rows_per_minute"
    )


class Settings(_Section):
    """One deployment."""

    cluster: Cluster
    network: Network
    scheduler: Scheduler
    servers: Fleet
    workers: Fleet
    ports: Ports = Ports()
    checkpoints: Checkpoints = Checkpoints()
    limits: Limits = Limits()
    identity: Identity = Identity()
    images: Images = Images()
    predictor: Predictor = Predictor()

    @property
    def usd_per_job(self) -> float:
        """What a job costs at most: every instance for the longest time."""
        fleets = sum(fleet.max * fleet.usd_per_hour for fleet in (self.servers, self.workers))
        return (self.scheduler.usd_per_hour + fleets) * self.limits.max_hours

    @model_validator(mode="after")
    def _possible(self) -> "Settings":
        _check_retention(self)
        _check_network(self)
        _check_ports(self)
        _check_instances(self)
        _check_limits(self)
        _check_identity(self)
        _check_predictor(self)
        return self


def _check_retention(settings: Settings) -> None:
    cluster = settings.cluster
    if cluster.log_retention_days not in LOG_RETENTION_DAYS:
        allowed = ", ".join(map(str, LOG_RETENTION_DAYS))
        raise SettingError(
            f"[cluster] log_retention_days must be one of {allowed}, got {cluster.log_retention_days}; "
            "these are the periods that CloudWatch Logs has"
        )
    if cluster.environment is Environment.PROD and cluster.removal is Removal.DESTROY:
        raise SettingError(
            "[cluster] removal must be retain where environment is prod, got destroy; "
            "keys, checkpoints and models of production are never destroyed with a stack"
        )


def _private_network(text: str, where: str, form: str, reason: str) -> IPv4Network:
    try:
        network = IPv4Network(text)
    except ValueError as error:
        raise SettingError(f"{where} must be {form}, got {text!r}: {error}") from None
    if not any(network.subnet_of(private) for private in PRIVATE_RANGES):
        allowed = ", ".join(map(str, PRIVATE_RANGES))
        raise SettingError(f"{where} must be in {allowed}, got {text}; {reason}")
    return network


def _check_network(settings: Settings) -> None:
    text = settings.network.cidr
    network = _private_network(text, "[network] cidr", "an IPv4 network", "nodes have private addresses only")
    nodes = 1 + settings.servers.max + settings.workers.max
    nodes += settings.predictor.max if settings.predictor.job else 0
    sessions = settings.cluster.remote_access is RemoteAccess.SESSION_MANAGER
    fixed = FIXED_ADDRESSES + (SESSION_ADDRESSES if sessions else 0)
    needed = nodes + fixed + RESERVED_ADDRESSES
    # Either zone may have to hold a whole job; a VPC is a /16 to a /28 and a subnet is half of it.
    longest = min(27, 31 - (needed - 1).bit_length())
    if not 16 <= network.prefixlen <= longest:
        raise SettingError(
            f"[network] cidr must be a /16 to a /{longest}, got /{network.prefixlen}; each of the two subnets needs "
            f"{needed} addresses: {nodes} nodes, {fixed} for endpoints, {RESERVED_ADDRESSES} that AWS keeps"
        )


def _check_ports(settings: Settings) -> None:
    ports = settings.ports.model_dump()
    for name, port in ports.items():
        twins = [other for other, value in ports.items() if value == port and other != name]
        if twins:
            raise SettingError(
                f"[ports] {name} must differ from {twins[0]}, got {port} for both; each role listens on its own port"
            )


def _check_instances(settings: Settings) -> None:
    for section in ("scheduler", "servers", "workers"):
        instance_type: str = getattr(settings, section).instance_type
        if is_arm(instance_type):
            raise SettingError(
                f"[{section}] instance_type must be x86_64, got {instance_type} (Arm); "
                "node images and Python packages are built for x86_64"
            )
    on_cpus = ("scheduler", "servers", *(["predictor"] if settings.predictor.job else []))
    for section in on_cpus:
        instance_type = getattr(settings, section).instance_type
        if family(instance_type) in GPU_FAMILIES | NEWER_GPU_FAMILIES:
            raise SettingError(
                f"[{section}] instance_type must have no GPU, got {instance_type}; only workers compute on GPUs, and "
                "this one would cost and do nothing"
            )
    worker = settings.workers.instance_type
    if (capability := NEWER_GPU_FAMILIES.get(family(worker))) is not None:
        raise SettingError(
            f"[workers] instance_type must have a GPU of compute capability 8.9 or less, got {worker} ({capability}); "
            f"MXNet 1.9.1 has no machine code for it: choose one of the families {', '.join(sorted(GPU_FAMILIES))}"
        )
    if settings.cluster.environment is Environment.PROD and not has_gpu(worker):
        raise SettingError(
            f"[workers] instance_type must have a GPU where environment is prod, got {worker} "
            f"(family {family(worker)}); choose one of the families {', '.join(sorted(GPU_FAMILIES))}"
        )


def _check_limits(settings: Settings) -> None:
    limits = settings.limits
    if limits.heartbeat_seconds >= limits.max_hours * 3600:
        raise SettingError(
            f"[limits] heartbeat_seconds must be less than max_hours ({limits.max_hours * 3600} s), "
            f"got {limits.heartbeat_seconds}; a dead scheduler is found before the job's deadline"
        )
    if limits.lost_seconds >= limits.heartbeat_seconds:
        raise SettingError(
            f"[limits] lost_seconds must be less than heartbeat_seconds ({limits.heartbeat_seconds} s), "
            f"got {limits.lost_seconds}; a lost worker is found before a lost scheduler"
        )
    if limits.usd_per_job is None:
        return
    prices = (settings.scheduler, settings.servers, settings.workers)
    if not all(fleet.usd_per_hour for fleet in prices):
        raise SettingError(
            "[limits] usd_per_job needs a usd_per_hour above 0 in [scheduler], [servers] and [workers]; "
            "without prices the budget cannot be held"
        )
    if settings.usd_per_job > limits.usd_per_job:
        raise SettingError(
            f"[limits] usd_per_job must be at least {settings.usd_per_job:.2f}, got {limits.usd_per_job:.2f}; that is "
            f"what the largest job of {limits.max_hours} h costs: raise it, or lower max_hours or a fleet's max"
        )


def _check_identity(settings: Settings) -> None:
    identity = settings.identity
    if identity.ca_overlap and identity.ca_generation == 1:
        raise SettingError(
            "[identity] ca_overlap must be false where ca_generation is 1, got true; there is no CA before the first: "
            "raise ca_generation by one to rotate"
        )
    if identity.private_ca_arn is None:
        return
    if (identity.ca_generation, identity.ca_overlap) != (1, False):
        raise SettingError(
            "[identity] private_ca_arn must be absent where ca_generation or ca_overlap is set, got both; "
            "they are for a CA of the cluster's own: remove one of them"
        )
    region = identity.private_ca_arn.split(":")[3]
    if region != settings.cluster.region:
        raise SettingError(
            f"[identity] private_ca_arn must be in the cluster's region, {settings.cluster.region}, got {region}; "
            "AWS Private CA signs in its own region only"
        )


def _check_predictor(settings: Settings) -> None:
    predictor = settings.predictor
    if is_arm(predictor.instance_type):
        raise SettingError(
            f"[predictor] instance_type must be x86_64, got {predictor.instance_type} (Arm); "
            "node images and Python packages are built for x86_64"
        )
    if not 2 * predictor.batch_rows <= predictor.rows_per_minute <= predictor.rows_per_day:
        raise SettingError(
            f"[predictor] rows_per_minute must be between 2 * batch_rows ({2 * predictor.batch_rows}) and rows_per_day "
            f"({predictor.rows_per_day}), got {predictor.rows_per_minute}; half of a limit is free at once, the rest "
            "as time goes by"
        )
    for text in predictor.client_ranges:
        _private_network(text, "[predictor] client_ranges", "IPv4 networks", "the endpoint is private")
