"""Checks of what nodes are launched from: launch templates, their volumes, profiles, and what they install."""

from collections.abc import Iterator
from typing import Any

from holdfast_cli.posture.inventory import Inventory
from holdfast_cli.posture.reading import Unreadable
from holdfast_cli.posture.report import Check, Outcome
from holdfast_node.contract.documents import Output
from holdfast_node.contract.roles import NodeRole, Serving, group_name

#: A predictor's default: with more, equation-solving brings a model back (docs/predictions.md).
_SAFE_DIGITS = 2


def versions(inventory: Inventory) -> Iterator[tuple[NodeRole, dict[str, Any], str]]:
    """Yield each role's launchable versions of its launch template, with what messages call it."""
    for role in inventory.roles:
        for version in inventory.template_versions(role):
            yield role, version, f"{group_name(inventory.name, role)} version {version['VersionNumber']}"


def _seen(inventory: Inventory) -> str:
    return "; ".join(where for _, _, where in versions(inventory))


def look_at_templates(inventory: Inventory) -> Outcome:
    """Look at metadata options, keys, addresses and security groups of what is launched."""
    problems = [
        f"{where}: {fault}"
        for role, version, where in versions(inventory)
        for fault in _template_faults(version["LaunchTemplateData"], inventory.group_id(role))
    ]
    return Outcome(_seen(inventory), tuple(problems))


def _template_faults(data: dict[str, Any], group: str) -> Iterator[str]:
    yield from metadata_faults(data.get("MetadataOptions", {}))
    if data.get("KeyName"):
        yield f"instances get the key pair {data['KeyName']}"
    interfaces = data.get("NetworkInterfaces", [])
    if len(interfaces) != 1:
        yield f"instances get {len(interfaces)} network interfaces"
    for interface in interfaces:
        if interface.get("AssociatePublicIpAddress") is not False:
            yield "instances may get a public address"
    groups = {name for interface in interfaces for name in interface.get("Groups", ())}
    groups |= {*data.get("SecurityGroupIds", ()), *data.get("SecurityGroups", ())}
    if groups != {group}:
        yield f"instances carry the security groups {', '.join(sorted(groups)) or '(none)'} and not {group} alone"


def metadata_faults(options: dict[str, Any]) -> Iterator[str]:
    """Yield what is wrong with metadata options, of a template or an instance."""
    if options.get("HttpTokens") != "required":
        yield f"metadata is answered without a token (HttpTokens is {options.get('HttpTokens', 'not set')})"
    if options.get("HttpPutResponseHopLimit") != 1:
        yield f"metadata is answered over {options.get('HttpPutResponseHopLimit', 'any number of')} hops"


def look_at_volumes(inventory: Inventory) -> Outcome:
    """Look whether each volume is encrypted with the data key and goes with its instance."""
    key = inventory.data_key
    problems = [
        f"{where}: {fault}"
        for _, version, where in versions(inventory)
        for fault in _volume_faults(version["LaunchTemplateData"].get("BlockDeviceMappings", []), key)
    ]
    return Outcome(f"{_seen(inventory)}; {key}", tuple(problems))


def _volume_faults(mappings: list[dict[str, Any]], key: str) -> Iterator[str]:
    if not mappings:
        yield "no volume is described, so the image's own is launched as the image has it"
    for mapping in mappings:
        name, volume = mapping["DeviceName"], mapping.get("Ebs", {})
        if volume.get("Encrypted") is not True:
            yield f"volume {name} is not encrypted"
        elif volume.get("KmsKeyId") != key:
            yield f"volume {name} is encrypted with {volume.get('KmsKeyId') or 'no key that is named'}"
        if volume.get("DeleteOnTermination") is not True:
            yield f"volume {name} outlives its instance"


def look_at_images(inventory: Inventory) -> Outcome:
    """Look whose images nodes boot: Amazon's, or the account's own."""
    problems, seen = [], {}
    for _, version, where in versions(inventory):
        image = str(version["LaunchTemplateData"].get("ImageId", ""))
        found = inventory.reader.every("ec2:DescribeImages", ImageIds=[image])
        if len(found) != 1:
            raise Unreadable(f"{where}: EC2 does not know the image {image or '(none)'}")
        owner = found[0].get("ImageOwnerAlias") or found[0]["OwnerId"]
        seen[image] = owner
        if owner not in ("amazon", inventory.account):
            problems.append(f"{where}: nodes boot the image {image}, which belongs to {owner}")
    return Outcome(", ".join(f"{image} of {owner}" for image, owner in seen.items()), tuple(problems))


def look_at_profiles(inventory: Inventory) -> Outcome:
    """Look whether nodes get their role's profile, and whether that profile holds the role alone."""
    own = inventory.of("IAM::InstanceProfile")
    problems = []
    for role in inventory.roles:
        profiles = inventory.profiles[role]
        problems += [
            f"instance profile {arn} holds {inventory.role_name(role)} and is not the cluster's"
            for arn in profiles
            if not any(arn == name or arn.endswith(f"/{name}") for name in own)
        ]
        if not profiles:
            problems.append(f"no instance profile holds {inventory.role_name(role)}")
    for role, version, where in versions(inventory):
        named = version["LaunchTemplateData"].get("IamInstanceProfile", {})
        profiles = inventory.profiles[role]
        names = {arn.rpartition("/")[2] for arn in profiles}
        if named.get("Arn") not in profiles and named.get("Name") not in names:
            problems.append(f"{where}: instances get the profile {named.get('Arn') or named.get('Name') or '(none)'}")
    return Outcome(f"{len(inventory.roles)} roles, one profile each", tuple(problems))


def look_at_software(inventory: Inventory) -> Outcome:
    """Look whether each launchable version installs the bundle that was deployed, for this cluster and role."""
    wanted = inventory.output("Foundation", "NodeBundle")
    if not wanted:
        raise Unreadable("the foundation stack has no output NodeBundle; deploy it again")
    problems = []
    for role, version, where in versions(inventory):
        try:
            config = inventory.config(role, version)
        except Unreadable as error:
            problems.append(str(error))
            continue
        if config.bundle.sha256 != wanted:
            problems.append(f"{where}: nodes install the bundle {config.bundle.sha256}, not {wanted}")
        if (config.cluster, config.role) != (inventory.name, role):
            problems.append(f"{where}: nodes become a {config.role} of cluster {config.cluster}")
    return Outcome(f"bundle {wanted}; {_seen(inventory)}", tuple(problems))


def look_at_predictions(inventory: Inventory) -> Outcome:
    """Look how much of a prediction leaves, where there are predictors."""
    if not inventory.serves:
        return Outcome("no predictor is deployed: no prediction leaves")
    problems, said = [], ""
    for role, version, where in versions(inventory):
        if role is not Serving.PREDICTOR:
            continue
        predictions = inventory.config(role, version).predictions
        assert predictions is not None  # a predictor's configuration has them, or is not read
        said = f"{predictions.output}, {predictions.digits} digits, {predictions.rows_per_day} rows a day"
        if predictions.output is not Output.LABELS and predictions.digits > _SAFE_DIGITS:
            problems.append(f"{where}: probabilities leave with {predictions.digits} digits")
    return Outcome(said, tuple(problems))


CHECKS = (
    Check(
        name="launch-templates",
        row="B3",
        claim="nodes answer metadata requests with a token and over one hop only, have no key pair, no public address, "
        "and their role's security group alone",
        remedy="make a version of the launch template as the training stack has it the default and the latest, delete "
        "the other, and replace the instances that were launched from it",
        look=look_at_templates,
    ),
    Check(
        name="images",
        row="B3",
        claim="nodes boot images of Amazon's or of the account's own, which hold no stranger's way in",
        remedy="make a version of the launch template with the image that the training stack deployed the default and "
        "the latest, and replace the instances that were launched from the other",
        look=look_at_images,
    ),
    Check(
        name="volumes",
        row="B4",
        claim="nodes' volumes are encrypted with the cluster's data key and go with their instances",
        remedy="make a version of the launch template as the training stack has it the default and the latest, delete "
        "the other, and replace the instances that were launched from it",
        look=look_at_volumes,
    ),
    Check(
        name="instance-profiles",
        row="B1",
        claim="nodes get their role's instance profile, and no other profile holds a node role",
        remedy="remove the role from the foreign profile, or put the launch template's profile back",
        look=look_at_profiles,
    ),
    Check(
        name="node-software",
        row="T3",
        claim="nodes install the deployed bundle, by its SHA-256: servers that execute nothing that a peer sends",
        remedy="put the launch template's user data back as the training stack has it, and see in CloudTrail who "
        "changed it",
        look=look_at_software,
    ),
    Check(
        name="predictions",
        row="D1",
        claim="predictions leave as labels, or as probabilities of two digits at most",
        remedy="lower [predictor] digits to 2 or choose labels, and deploy",
        look=look_at_predictions,
    ),
)
