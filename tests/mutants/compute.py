"""Mutants of what runs: instances, images, functions, state machines, sessions."""

from tests.mutants.edits import Edit, Mutant, Ref, add, drop, give, like, new, put, replace

_WORKER = ("ClusterWorkerTemplate", "LaunchTemplateData")
_SERVER = ("ClusterServerTemplate", "LaunchTemplateData")
_SCRATCH = (*_SERVER, "BlockDeviceMappings", "/dev/sdb", "Ebs")
_CARD = (*_WORKER, "NetworkInterfaces", 0)
_FUNCTION, _MACHINE = "FoundationEnrolmentFunction", "ClusterJobsStateMachine"
_VARIABLES = (_FUNCTION, "Environment", "Variables")
_SESSION = ("FoundationSessionsDocument", "Content", "inputs")
_AMI = ("NodesDistribution", "Distributions", 0, "AmiDistributionConfiguration")
_KEY_ID = "AKIAIOSFODNN7EXAMPLE"  # AWS's own example


def _training(name: str, what: str, edit: Edit) -> Mutant:
    return Mutant(name, "Training", what, edit)


def _foundation(name: str, what: str, edit: Edit, of: str = "dev") -> Mutant:
    return Mutant(name, "Foundation", what, edit, of)


def _images(name: str, what: str, edit: Edit) -> Mutant:
    return Mutant(name, "Images", what, edit, of="full")


MUTANTS = (
    _training(
        "imdsv1", "workers answer without a token", put(*_WORKER, "MetadataOptions", "HttpTokens", to="optional")
    ),
    _training(
        "imds-two-hops",
        "workers' credentials reach a hop further",
        put(*_WORKER, "MetadataOptions", "HttpPutResponseHopLimit", to=2),
    ),
    _training(
        "metadata-tags",
        "workers' tags are in the metadata",
        put(*_WORKER, "MetadataOptions", "InstanceMetadataTags", to="enabled"),
    ),
    _training("imds-default", "workers have the account's default", drop(*_WORKER, "MetadataOptions")),
    _training("public-address", "workers get public addresses", put(*_CARD, "AssociatePublicIpAddress", to=True)),
    _training("key-pair", "workers have an SSH key pair", give(*_WORKER, "KeyName", to="admin")),
    _training("unencrypted-volume", "servers' scratch volume is plain", put(*_SCRATCH, "Encrypted", to=False)),
    _training("volume-aws-key", "servers' scratch volume has AWS's key", drop(*_SCRATCH, "KmsKeyId")),
    _training("image-volumes", "workers have the image's own volumes", drop(*_WORKER, "BlockDeviceMappings")),
    _training("kept-volume", "servers' scratch volume outlives them", put(*_SCRATCH, "DeleteOnTermination", to=False)),
    _training(
        "stopped-instance",
        "workers that shut down stay, with their volumes",
        put(*_WORKER, "InstanceInitiatedShutdownBehavior", to="stop"),
    ),
    _training("unknown-image", "workers boot somebody's image", put(*_WORKER, "ImageId", to="ami-0123456789abcdef0")),
    _training(
        "other-profile",
        "workers have servers' credentials",
        put(*_WORKER, "IamInstanceProfile", to=like(*_SERVER, "IamInstanceProfile")),
    ),
    _training(
        "other-group",
        "workers are in servers' group",
        put(*_CARD, "Groups", to=like(*_SERVER, "NetworkInterfaces", 0, "Groups")),
    ),
    _training(
        "other-role",
        "workers' profile has servers' role",
        put("ClusterWorkerProfile", "Roles", 0, to=Ref("ClusterServerRole")),
    ),
    _training(
        "other-template",
        "the workers' group starts servers",
        put("ClusterWorkerGroupASG", "LaunchTemplate", "LaunchTemplateId", to=Ref("ClusterServerTemplate")),
    ),
    _training("runs-at-rest", "a worker runs at rest", put("ClusterWorkerGroupASG", "MinSize", to="1")),
    _training(
        "starts-at-deployment", "a deployment starts workers", give("ClusterWorkerGroupASG", "DesiredCapacity", to="1")
    ),
    _training(
        "other-subnet",
        "workers start in another subnet",
        put("ClusterWorkerGroupASG", "VPCZoneIdentifier", 0, to="subnet-0123456789abcdef0"),
    ),
    _training(
        "secret-in-user-data",
        "user data holds an access key",
        replace(*_WORKER, "UserData", old="#!/bin/bash", new=f"#!/bin/bash\\nexport AWS_ACCESS_KEY_ID={_KEY_ID}"),
    ),
    _foundation(
        "secret-in-environment",
        "a function's environment holds a key",
        give(*_VARIABLES, "HOLDFAST_KEY", to="-----BEGIN PRIVATE KEY-----"),
    ),
    _foundation("function-aws-key", "a function's environment has AWS's key", drop(_FUNCTION, "KmsKeyArn")),
    _foundation(
        "function-log-aws-key",
        "enrolment logs to a group of Lambda's making",
        drop(_FUNCTION, "LoggingConfig", "LogGroup"),
    ),
    _foundation(
        "function-foreign-code",
        "enrolment's code is somebody's",
        put(_FUNCTION, "Code", "S3Bucket", to="somebody-elses"),
    ),
    _foundation(
        "function-layer",
        "enrolment loads somebody's layer",
        give(_FUNCTION, "Layers", to=["arn:aws:lambda:us-east-1:111122223333:layer:other:1"]),
    ),
    _foundation(
        "enrols-another-role",
        "enrolment takes an administrator for a worker",
        replace(*_VARIABLES, "HOLDFAST_ROLES", old=":role/dev-us-east-1-worker", new=":role/admin"),
    ),
    _foundation(
        "enrols-another-group",
        "enrolment takes any instance of another group",
        replace(*_VARIABLES, "HOLDFAST_ROLES", old='\\"dev-worker\\"', new='\\"web\\"'),
    ),
    _foundation(
        "function-url",
        "the enrolment function has a URL",
        new("AWS::Lambda::Url", TargetFunctionArn=Ref(_FUNCTION), AuthType="NONE"),
    ),
    _foundation(
        "function-for-anybody",
        "anybody may invoke the enrolment function",
        new("AWS::Lambda::Permission", FunctionName=Ref(_FUNCTION), Action="lambda:InvokeFunction", Principal="*"),
    ),
    _training("machine-aws-key", "executions are under AWS's key", drop(_MACHINE, "EncryptionConfiguration")),
    _training(
        "machine-other-key",
        "executions are under another key",
        put(_MACHINE, "EncryptionConfiguration", "KmsKeyId", to="alias/other"),
    ),
    _training(
        "machine-logs-data",
        "the log holds jobs' data",
        put(_MACHINE, "LoggingConfiguration", "IncludeExecutionData", to=True),
    ),
    _training(
        "machine-logs-elsewhere",
        "executions are logged elsewhere",
        put(
            *(_MACHINE, "LoggingConfiguration", "Destinations", 0, "CloudWatchLogsLogGroup", "LogGroupArn"),
            to={"Fn::Sub": "arn:aws:logs:us-east-1:${AWS::AccountId}:log-group:other:*"},
        ),
    ),
    _training(
        "machine-unlogged", "executions are not logged", put(_MACHINE, "LoggingConfiguration", "Level", to="OFF")
    ),
    _foundation(
        "session-as-root", "operators' shell is root's", put(*_SESSION, "runAsDefaultUser", to="root"), of="full"
    ),
    _foundation(
        "session-unrecorded", "no session is recorded", put(*_SESSION, "cloudWatchLogGroupName", to=""), of="full"
    ),
    _foundation("session-unencrypted", "sessions have TLS alone", put(*_SESSION, "kmsKeyId", to=""), of="full"),
    _training(
        "event-to-stranger",
        "another account hears of failed jobs",
        add(
            "ClusterJobsAbort",
            "Targets",
            item={
                "Id": "Other",
                "Arn": "arn:aws:events:us-east-1:111122223333:event-bus/default",
                "RoleArn": like("ClusterJobsAbort", "Targets", 0, "RoleArn"),
            },
        ),
    ),
    _foundation("session-endless", "a session does not end", drop(*_SESSION, "maxSessionDuration"), of="full"),
    _images(
        "imdsv1-while-baking",
        "baking instances answer without a token",
        put("NodesInfrastructure", "InstanceMetadataOptions", "HttpTokens", to="optional"),
    ),
    _images(
        "key-pair-while-baking", "baking instances have a key pair", give("NodesInfrastructure", "KeyPair", to="admin")
    ),
    _images(
        "default-group-while-baking",
        "baking instances are in the VPC's default group",
        drop("NodesInfrastructure", "SecurityGroupIds"),
    ),
    _images(
        "failed-bake-stays",
        "an instance that failed to bake runs on",
        put("NodesInfrastructure", "TerminateInstanceOnFailure", to=False),
    ),
    _images(
        "unencrypted-recipe",
        "images' volume is plain",
        put("NodesRecipe", "BlockDeviceMappings", 0, "Ebs", "Encrypted", to=False),
    ),
    _images(
        "unknown-parent",
        "images are made from somebody's",
        put("NodesRecipe", "ParentImage", to="ami-0123456789abcdef0"),
    ),
    _images("image-aws-key", "images are under AWS's key", drop(*_AMI, "KmsKeyId")),
    _images(
        "public-image", "images are public", give(*_AMI, "LaunchPermissionConfiguration", to={"UserGroups": ["all"]})
    ),
)
