"""Mutants of who may do what: roles, policies, keys."""

from tests.mutants.edits import Edit, Mutant, Ref, add, allow, drop, give, like, new, put, replace

_WORKER, _SERVER, _ENROLMENT = "ClusterWorkerPolicy", "ClusterServerPolicy", "FoundationEnrolmentPolicy"
_DOCUMENT = ("PolicyDocument", "Statement")
_TRUST = ("AssumeRolePolicyDocument", "Statement", 0)
_DATA, _CA, _MODELS = "FoundationKeysData", "FoundationKeysCertificateAuthority", "FoundationKeysModelSigning"
_KEY = ("KeyPolicy", "Statement")
_STRANGER = {"AWS": "arn:aws:iam::111122223333:root"}
_OPERATORS = ("FoundationSessionsOperators", *_DOCUMENT)


def _training(name: str, what: str, edit: Edit) -> Mutant:
    return Mutant(name, "Training", what, edit)


def _foundation(name: str, what: str, edit: Edit, of: str = "dev") -> Mutant:
    return Mutant(name, "Foundation", what, edit, of)


_ROLES = (
    _training(
        "role-for-anybody", "anybody may be a worker", put("ClusterWorkerRole", *_TRUST, "Principal", to={"AWS": "*"})
    ),
    _training(
        "role-for-stranger",
        "another account may be a worker",
        put("ClusterWorkerRole", *_TRUST, "Principal", to=_STRANGER),
    ),
    _training(
        "role-for-other-service",
        "functions may be workers",
        put("ClusterWorkerRole", *_TRUST, "Principal", "Service", to="lambda.amazonaws.com"),
    ),
    _training(
        "confused-deputy", "any account's executions take the role", drop("ClusterJobsRole", *_TRUST, "Condition")
    ),
    _training(
        "administrator",
        "workers are administrators",
        give("ClusterWorkerRole", "ManagedPolicyArns", to=["arn:aws:iam::aws:policy/AdministratorAccess"]),
    ),
    _training(
        "inline-policy",
        "a role has an inline policy",
        give(
            "ClusterWorkerRole",
            "Policies",
            to=[{"PolicyName": "Mutant", "PolicyDocument": like(_SERVER, "PolicyDocument")}],
        ),
    ),
    _training(
        "shared-policy", "servers have workers' policy too", add(_WORKER, "Roles", item=Ref("ClusterServerRole"))
    ),
    _training("user-policy", "a user has workers' policy", give(_WORKER, "Users", to=["admin"])),
    _training("iam-user", "there is a user", new("AWS::IAM::User", UserName="admin")),
)

_POLICIES = (
    _training(
        "wildcard-policy", "workers may do everything", allow(_WORKER, "PolicyDocument", Action="*", Resource="*")
    ),
    _training(
        "wildcard-action",
        "workers may do all to a function",
        put(_WORKER, *_DOCUMENT, "Enrol", "Action", to="lambda:*"),
    ),
    _training(
        "all-but-one-action",
        "workers may do all but one thing to a function",
        allow(_WORKER, "PolicyDocument", NotAction="iam:*", Resource=like(_WORKER, *_DOCUMENT, "Enrol", "Resource")),
    ),
    _training(
        "pass-role",
        "workers may pass servers' role on",
        allow(
            _WORKER,
            "PolicyDocument",
            Action="iam:PassRole",
            Resource={"Fn::Sub": "arn:aws:iam::${AWS::AccountId}:role/dev-us-east-1-server"},
        ),
    ),
    _training(
        "misspelled-action",
        "an action is misspelled",
        put(_WORKER, *_DOCUMENT, "ReadJobs", "Action", to="s3:GetObjekt"),
    ),
    _training(
        "wildcard-resource", "workers may use any key", put(_WORKER, *_DOCUMENT, "VerifyModels", "Resource", to="*")
    ),
    _training(
        "wildcard-functions",
        "workers may invoke any function",
        put(_WORKER, *_DOCUMENT, "Enrol", "Resource", to="arn:aws:lambda:*:*:function:*"),
    ),
    _training(
        "whole-bucket",
        "workers may read all of the jobs bucket",
        replace(_WORKER, *_DOCUMENT, "ReadJobs", "Resource", old="/jobs/*", new="/*"),
    ),
    _training(
        "foreign-bucket",
        "workers may write to somebody's bucket",
        put(_WORKER, *_DOCUMENT, "OwnRecords", "Resource", to="arn:aws:s3:::somebody-elses/records/*"),
    ),
    _training(
        "lists-everything", "workers may list the jobs bucket", drop(_WORKER, *_DOCUMENT, "ListDenials", "Condition")
    ),
    _training(
        "lists-any-prefix",
        "workers may list the jobs bucket from its root",
        put(_WORKER, *_DOCUMENT, "ListDenials", "Condition", "StringEquals", "s3:prefix", to=""),
    ),
    _training(
        "server-signs-models",
        "servers may sign models",
        add(_SERVER, *_DOCUMENT, item=like(_WORKER, *_DOCUMENT, "SignModels")),
    ),
    _training(
        "signs-messages", "workers may sign whole messages", drop(_WORKER, *_DOCUMENT, "SignModels", "Condition")
    ),
    _training(
        "data-key-at-will", "workers decrypt past S3", drop(_WORKER, *_DOCUMENT, "EncryptedObjects", "Condition")
    ),
    _training(
        "data-key-through-ec2",
        "workers decrypt volumes",
        put(
            _WORKER,
            *(*_DOCUMENT, "EncryptedObjects", "Condition", "StringEquals", "kms:ViaService"),
            to="ec2.us-east-1.amazonaws.com",
        ),
    ),
    _training(
        "mounts-everything",
        "workers mount past the access point",
        drop(_WORKER, *_DOCUMENT, "MountCheckpoints", "Condition"),
    ),
    _foundation(
        "enrolment-signs-anything",
        "the CA signs whole messages",
        drop(_ENROLMENT, *_DOCUMENT, "SignCertificates", "Condition"),
    ),
    _foundation(
        "session-without-second-factor",
        "operators need no second factor",
        drop(*_OPERATORS, "OpenSessions", "Condition", "Bool", "aws:MultiFactorAuthPresent"),
        of="full",
    ),
    _foundation(
        "session-with-any-document",
        "operators may name another document",
        drop(*_OPERATORS, "OpenSessions", "Condition", "Bool", "ssm:SessionDocumentAccessCheck"),
        of="full",
    ),
    _foundation(
        "session-on-any-instance",
        "operators may open sessions on others' instances",
        drop(*_OPERATORS, "OpenSessions", "Condition", "StringEquals"),
        of="full",
    ),
    _foundation(
        "session-as-any-user",
        "an operator's tag may name another user",
        drop(*_OPERATORS, "WithThisDocument", "Condition", "Null"),
        of="full",
    ),
)

_KEYS = (
    _foundation(
        "public-key-policy",
        "anybody may decrypt with the data key",
        allow(_DATA, "KeyPolicy", Principal={"AWS": "*"}, Action="kms:Decrypt", Resource="*"),
    ),
    _foundation("key-of-stranger", "another account holds a key", put(_DATA, *_KEY, 0, "Principal", to=_STRANGER)),
    _foundation(
        "key-for-any-account",
        "Auto Scaling of any account has the data key",
        drop(_DATA, *_KEY, "AutoScalingVolumes", "Condition", "StringEquals"),
    ),
    _foundation(
        "key-for-any-caller",
        "anybody of the account has the data key",
        drop(_DATA, *_KEY, "AutoScalingGrants", "Condition", "ArnEquals"),
    ),
    _foundation(
        "key-for-service",
        "a service may do all to the data key",
        put(_DATA, *_KEY, "CloudWatchLogs", "Action", to="kms:*"),
    ),
    _foundation("key-for-any-log", "any log group has the data key", drop(_DATA, *_KEY, "CloudWatchLogs", "Condition")),
    _foundation(
        "key-for-any-logs-account",
        "log delivery of any account has the data key",
        drop(_DATA, *_KEY, "LogDelivery", "Condition", "StringEquals"),
    ),
    _foundation(
        "key-grants",
        "Auto Scaling may grant the data key to anybody",
        drop(_DATA, *_KEY, "AutoScalingGrants", "Condition", "Bool"),
    ),
    _foundation("imported-key", "somebody has made the CA's key", give(_CA, "Origin", to="EXTERNAL")),
    _foundation("multi-region-key", "the CA's key may be in other regions", give(_CA, "MultiRegion", to=True)),
    _foundation("ca-other-curve", "the CA's key has another curve", put(_CA, "KeySpec", to="ECC_SECG_P256K1")),
    _foundation("ca-signs-for-anybody", "others may sign as the CA", drop(_CA, *_KEY, "DenyOtherSigners")),
    _foundation(
        "ca-signs-for-another-role",
        "a worker may sign as the CA",
        add(
            _CA,
            *_KEY,
            "DenyOtherSigners",
            "Condition",
            "ArnNotLike",
            "aws:PrincipalArn",
            item="arn:aws:iam::*:role/*-worker",
        ),
    ),
    _foundation("ca-signs-messages", "the CA's key signs whole messages", drop(_CA, *_KEY, "DenyOtherMessages")),
    _foundation(
        "servers-sign-models",
        "the models' key is servers'",
        replace(_MODELS, *_KEY, "DenyOtherSigners", old="-worker", new="-server"),
    ),
    _foundation("key-kept", "the data key is not rotated", put(_DATA, "EnableKeyRotation", to=False)),
)

MUTANTS = (*_ROLES, *_POLICIES, *_KEYS)
