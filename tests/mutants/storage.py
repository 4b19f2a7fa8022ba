"""Mutants of what is kept: buckets, the file system, logs."""

from tests.mutants.edits import Edit, Mutant, allow, drop, give, like, on_deletion, put

_BUCKET, _POLICY = "FoundationBucketsModels", "FoundationBucketsModelsPolicy"
_STATEMENTS = (_POLICY, "PolicyDocument", "Statement")
_DELIVERY = ("FoundationBucketsAccessLogsPolicy", "PolicyDocument", "Statement", "AccessLogDelivery")
_SYSTEM, _POINT = "ClusterCheckpointsFileSystem", "ClusterCheckpointsAccessPoint"
_SYSTEM_POLICY = (_SYSTEM, "FileSystemPolicy", "Statement")
_DEFAULT = ("BucketEncryption", "ServerSideEncryptionConfiguration", 0, "ServerSideEncryptionByDefault")
_OBJECTS = like(_POLICY, "PolicyDocument", "Statement", "DenyOtherKey", "Resource")


def _foundation(name: str, what: str, edit: Edit) -> Mutant:
    return Mutant(name, "Foundation", what, edit)


def _training(name: str, what: str, edit: Edit, of: str = "dev") -> Mutant:
    return Mutant(name, "Training", what, edit, of)


MUTANTS = (
    _foundation(
        "public-bucket",
        "a bucket's policy may be public",
        put(_BUCKET, "PublicAccessBlockConfiguration", "BlockPublicPolicy", to=False),
    ),
    _foundation("unblocked-bucket", "nothing keeps a bucket private", drop(_BUCKET, "PublicAccessBlockConfiguration")),
    _foundation("bucket-acls", "objects may have other owners", drop(_BUCKET, "OwnershipControls")),
    _foundation(
        "bucket-s3-key", "a bucket's default key is S3's", put(_BUCKET, *_DEFAULT, to={"SSEAlgorithm": "AES256"})
    ),
    _foundation("bucket-aws-key", "a bucket's default key is AWS's", drop(_BUCKET, *_DEFAULT, "KMSMasterKeyID")),
    _foundation("bucket-unencrypted", "a bucket has no default key", drop(_BUCKET, "BucketEncryption")),
    _foundation(
        "bucket-unversioned",
        "objects can be replaced for good",
        put(_BUCKET, "VersioningConfiguration", "Status", to="Suspended"),
    ),
    _foundation(
        "bucket-replicated",
        "objects are copied to somebody's bucket",
        give(
            _BUCKET,
            "ReplicationConfiguration",
            to={
                "Role": {"Fn::Sub": "arn:aws:iam::${AWS::AccountId}:role/replication"},
                "Rules": [{"Status": "Enabled", "Destination": {"Bucket": "arn:aws:s3:::somebody-elses"}}],
            },
        ),
    ),
    _foundation("bucket-remembers", "what is deleted stays for ever", drop(_BUCKET, "LifecycleConfiguration")),
    _foundation("bucket-unrecorded", "requests are not recorded", drop(_BUCKET, "LoggingConfiguration")),
    _foundation("dropped-bucket-policy", "a bucket has no policy", drop(_POLICY)),
    _foundation("bucket-plaintext", "a bucket takes plaintext connections", drop(*_STATEMENTS, 0)),
    _foundation(
        "bucket-old-tls",
        "a bucket takes TLS 1.0",
        put(*_STATEMENTS, 1, "Condition", "NumericLessThan", "s3:TlsVersion", to=1.0),
    ),
    _foundation("bucket-plaintext-objects", "objects are read in plaintext", drop(*_STATEMENTS, 0, "Resource", 1)),
    _foundation("bucket-customer-key", "uploads choose their own key", drop(*_STATEMENTS, "DenyCustomerProvidedKey")),
    _foundation("bucket-other-key", "uploads may name another key", drop(*_STATEMENTS, "DenyOtherKey")),
    _foundation(
        "public-bucket-policy",
        "anybody may read models",
        allow(_POLICY, "PolicyDocument", Principal="*", Action="s3:GetObject", Resource=_OBJECTS),
    ),
    _foundation("log-delivery-for-anybody", "any account's logs are taken", drop(*_DELIVERY, "Condition")),
    _training("file-system-unencrypted", "checkpoints are plain", put(_SYSTEM, "Encrypted", to=False)),
    _training("file-system-aws-key", "checkpoints are under AWS's key", drop(_SYSTEM, "KmsKeyId")),
    _training("file-system-without-policy", "everybody in the network may mount", drop(_SYSTEM, "FileSystemPolicy")),
    _training("file-system-plaintext", "checkpoints travel in plaintext", drop(*_SYSTEM_POLICY, "DenyPlaintext")),
    _training(
        "file-system-past-access-point", "mounts need no access point", drop(*_SYSTEM_POLICY, "DenyWithoutAccessPoint")
    ),
    _training("file-system-root", "a mount may be root's", drop(*_SYSTEM_POLICY, "DenyRoot")),
    _training(
        "file-system-for-anybody",
        "anybody may mount",
        allow(_SYSTEM, "FileSystemPolicy", Principal={"AWS": "*"}, Action="elasticfilesystem:ClientMount"),
    ),
    _training(
        "file-system-replicated",
        "checkpoints are copied to another region",
        give(_SYSTEM, "ReplicationConfiguration", to={"Destinations": [{"Region": "eu-west-1"}]}),
    ),
    _training(
        "file-system-backed-up", "purged checkpoints stay", give(_SYSTEM, "BackupPolicy", to={"Status": "ENABLED"})
    ),
    _training("access-point-root", "the access point writes as root", put(_POINT, "PosixUser", "Uid", to="0")),
    _training(
        "access-point-for-all",
        "any user may write",
        put(_POINT, "RootDirectory", "CreationInfo", "Permissions", to="777"),
    ),
    _training("access-point-at-root", "the access point is the whole", put(_POINT, "RootDirectory", "Path", to="/")),
    _training(
        "mount-target-other-group",
        "a mount target is in another group",
        put("ClusterCheckpointsFileSystemEfsMountTargetNodesSubnet1", "SecurityGroups", 0, to="sg-0123456789abcdef0"),
    ),
    _foundation("log-aws-key", "nodes' logs are under AWS's key", drop("FoundationNodeLog", "KmsKeyId")),
    _foundation("log-for-ever", "nodes' logs are kept for ever", drop("FoundationNodeLog", "RetentionInDays")),
    _foundation("refusals-uncounted", "refused messages are not counted", drop("FoundationRefusedMessages")),
    _training(
        "production-deletes-checkpoints",
        "deletion takes production's checkpoints",
        on_deletion(_SYSTEM, now="RetainExceptOnCreate", then="Delete"),
        of="prod",
    ),
)
