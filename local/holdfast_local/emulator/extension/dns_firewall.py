"""Route 53 Resolver's DNS Firewall, which ministack lacks: domain lists, rule groups, and their VPCs.

As resources of stacks, the requests that read them back, and those that attach a rule group to a VPC, detach it, or
have a VPC fail open. Nothing resolves here: whoever stands for a VPC's resolver (`holdfast_local.hosts.resolver`)
applies what these requests say.
"""

import json
import secrets
from typing import Any

from holdfast_local.emulator.extension.cloudformation import Create, Delete, register
from holdfast_local.emulator.extension.seams import seam

_SERVICE = "route53resolver"
_PREFIX = "AWS::Route53Resolver::Firewall"
Record = dict[str, Any]


class _Store:
    def __init__(self) -> None:
        self.domain_lists: dict[str, Record] = {}
        self.rule_groups: dict[str, Record] = {}
        self.associations: dict[str, Record] = {}
        self.fail_open: dict[str, str] = {}


def install() -> None:
    """Add the three resource types and the service."""
    store = _Store()
    register(f"{_PREFIX}DomainList", *_resource("fdl", store.domain_lists, required="Domains"))
    register(f"{_PREFIX}RuleGroup", *_resource("frg", store.rule_groups, required="FirewallRules"))
    register(f"{_PREFIX}RuleGroupAssociation", *_resource("frgassoc", store.associations, required="VpcId"))
    router = seam("ministack.core.router", "SERVICE_PATTERNS")
    application = seam("ministack.app", "SERVICE_HANDLERS")
    actions = seam("ministack.core.iam_actions", "SERVICE_TO_IAM_NAMESPACE")
    if _SERVICE in application.SERVICE_HANDLERS:
        raise RuntimeError(f"ministack serves {_SERVICE} itself; remove the extension's")
    router.SERVICE_PATTERNS[_SERVICE] = {"target_prefixes": ["Route53Resolver."], "credential_scope": _SERVICE}
    actions.SERVICE_TO_IAM_NAMESPACE[_SERVICE] = _SERVICE
    requests = {
        "ListFirewallRuleGroupAssociations": lambda asked: _associations(store, asked),
        "ListFirewallRules": lambda asked: _rules(store, asked),
        "ListFirewallDomains": lambda asked: _domains(store, asked),
        "GetFirewallConfig": lambda asked: _configuration(store, asked),
        "UpdateFirewallConfig": lambda asked: _configure(store, asked),
        "AssociateFirewallRuleGroup": lambda asked: _associate(store, asked),
        "DisassociateFirewallRuleGroup": lambda asked: _disassociate(store, asked),
    }

    async def handle(method: str, path: str, headers: dict[str, str], body: bytes, query: Any) -> Any:
        operation = headers.get("x-amz-target", "").rpartition(".")[2]
        if operation not in requests:
            return _answer(400, {"__type": "UnknownOperationException", "message": f"no operation {operation}"})
        try:
            return _answer(200, requests[operation](json.loads(body or b"{}")))
        except KeyError as error:
            return _answer(400, {"__type": "ResourceNotFoundException", "Message": f"{error} does not exist"})

    application.SERVICE_HANDLERS[_SERVICE] = handle


def _answer(status: int, document: Record) -> tuple[int, dict[str, str], bytes]:
    return status, {"Content-Type": "application/x-amz-json-1.1"}, json.dumps(document).encode()


def _resource(prefix: str, records: dict[str, Record], *, required: str) -> tuple[Create, Delete]:
    def create(logical_id: str, properties: Record, stack: str) -> tuple[str, dict[str, str]]:
        if not properties.get(required):
            raise ValueError(f"{logical_id} must have {required}")
        name = f"rslvr-{prefix}-{secrets.token_hex(8)}"
        records[name] = {"Id": name, **properties}
        arn = f"arn:aws:route53resolver:::{prefix}/{name}"
        return name, {"Id": name, "Arn": arn, "Status": "COMPLETE"}

    def delete(physical_id: str, properties: Record) -> None:
        records.pop(physical_id, None)

    return create, delete


def _associations(store: _Store, asked: Record) -> Record:
    found = [
        {
            "Id": name,
            "FirewallRuleGroupId": a["FirewallRuleGroupId"],
            "VpcId": a["VpcId"],
            "Priority": int(a["Priority"]),
            "Status": "COMPLETE",
        }
        for name, a in store.associations.items()
        if asked.get("VpcId") in (None, a["VpcId"])
    ]
    return {"FirewallRuleGroupAssociations": sorted(found, key=lambda item: item["Priority"])}


def _rules(store: _Store, asked: Record) -> Record:
    rules = [dict(rule) for rule in store.rule_groups[asked["FirewallRuleGroupId"]]["FirewallRules"]]
    for rule in rules:
        rule["Priority"] = int(rule["Priority"])
        rule["FirewallRuleGroupId"] = asked["FirewallRuleGroupId"]
    return {"FirewallRules": sorted(rules, key=lambda rule: int(rule["Priority"]))}


def _domains(store: _Store, asked: Record) -> Record:
    # AWS gives every domain back with the root's dot.
    domains = store.domain_lists[asked["FirewallDomainListId"]]["Domains"]
    return {"Domains": [domain if domain.endswith(".") else f"{domain}." for domain in domains]}


def _configuration(store: _Store, asked: Record) -> Record:
    vpc = asked["ResourceId"]
    return {"FirewallConfig": {"ResourceId": vpc, "FirewallFailOpen": store.fail_open.get(vpc, "DISABLED")}}


def _configure(store: _Store, asked: Record) -> Record:
    store.fail_open[asked["ResourceId"]] = asked["FirewallFailOpen"]
    return _configuration(store, asked)


def _associate(store: _Store, asked: Record) -> Record:
    if asked["FirewallRuleGroupId"] not in store.rule_groups:
        raise KeyError(asked["FirewallRuleGroupId"])
    name = f"rslvr-frgassoc-{secrets.token_hex(8)}"
    store.associations[name] = {key: asked[key] for key in ("FirewallRuleGroupId", "VpcId", "Priority")}
    return {"FirewallRuleGroupAssociation": {"Id": name, "Status": "COMPLETE"}}


def _disassociate(store: _Store, asked: Record) -> Record:
    name = asked["FirewallRuleGroupAssociationId"]
    del store.associations[name]
    return {"FirewallRuleGroupAssociation": {"Id": name, "Status": "DELETING"}}
