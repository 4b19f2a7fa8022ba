#!/bin/bash
# Holdfast: makes a node, once; after a reboot systemd does. Nothing runs before its SHA-256 is right.
set -uo pipefail
umask 022
export LC_ALL=C.UTF-8 AWS_DEFAULT_REGION='@REGION@' AWS_PAGER='' AWS_RETRY_MODE=standard AWS_MAX_ATTEMPTS=6
read -r instance < /var/lib/cloud/data/instance-id
code=/opt/holdfast/bundle tmp=/run/holdfast-boot  # in memory, so that a full disk can be told of
disk=$(mktemp -d /var/tmp/holdfast-boot.XXXXXX)   # on disk: /tmp is memory on Amazon Linux 2023
trap 'rm -rf "$disk"' EXIT

# --- constants
install -d -m 0755 /etc/holdfast /opt/holdfast /var/log/holdfast
install -d -m 0700 "$tmp"
cat > /etc/holdfast/node.json <<'HOLDFAST_NODE_JSON'
@CONFIG@
HOLDFAST_NODE_JSON

# --- flight recorder
# Judges a phase by its status and what it said: `cause: ...` and `remedy: ...`.
cat > "$tmp/record.py" <<'PYTHON'
import json, os, sys, time
phase, start, end, limit, spent, code = sys.argv[1:]
lines = [line.strip() for line in open("output", errors="replace") if line.strip()]
said = {key: line[len(key) + 2:] for line in lines for key in ("cause", "remedy") if line.startswith(key + ": ")}
if any("No space left on device" in line for line in lines):
    said = {"cause": "the disk is full", "remedy": "give the role's instances a larger volume"}
status = "ok" if code == "0" else "timeout" if int(spent) >= int(limit) else "failed"
last = "did not end within %s s" % limit if status == "timeout" else (lines or ["ended with status " + code])[-1]
cause = "" if status == "ok" else said.get("cause", last)[:500]
remedy = "" if status == "ok" else said.get("remedy", "read the instance's console")[:300]
record = dict(phase=phase, start=start, end=end, status=status, timeout_seconds=int(limit), cause=cause, remedy=remedy)
phases = json.load(open("report.json"))["phases"] if os.path.exists("report.json") else []
phases.append(record)
report = {"role": "@ROLE@", "instance_id": os.environ["instance"], "phases": phases}
json.dump(report, open("report.json", "w"))
json.dump([{"timestamp": int(time.time() * 1000), "message": json.dumps(p)} for p in phases], open("events.json", "w"))
open("text", "w").write("%s (%s) did not boot: %s: %s; %s" % ("@ROLE@", report["instance_id"], phase, cause, remedy))
print("holdfast: boot: %s %s" % (phase, status) + (": %s; %s" % (cause, remedy) if cause else ""), flush=True)
print(json.dumps(record), file=open("/var/log/holdfast/boot.log", "a"))
PYTHON

# phase NAME SECONDS COMMAND...: leaves a record in the boot log and a line on the console.
phase() {
  local name=$1 limit=$2 began=$SECONDS start status=0
  shift 2
  start=$(date -u +%FT%TZ)
  timeout -k 5 "$limit" bash -c '"$@"' _ "$@" < /dev/null > "$tmp/output" 2>&1 || status=$?
  cat "$tmp/output"
  (cd "$tmp" && python3 record.py "$name" "$start" "$(date -u +%FT%TZ)" "$limit" $((SECONDS - began)) "$status") |
    tee /dev/console
  [ "$status" = 0 ] || give_up
}

# Tells operators and the job why, and ends the instance, which its group then replaces.
give_up() {
  timeout 100 bash -c 'until tell; do sleep 5; done'
  systemd-run -q --on-active=60 systemctl poweroff || systemctl poweroff
  exit 1
}

store() { aws s3api put-object --bucket "$jobs" --key "boot/$role/$instance.json" --body "$tmp/report.json"; }

tell() {
  local group=(--log-group-name '@LOG_GROUP@' --log-stream-name "nodes/$role/$instance/boot")
  store || return
  aws logs create-log-stream "${group[@]}"
  aws logs put-log-events "${group[@]}" --log-events "file://$tmp/events.json"
  # A scheduler tells of the others.
  [ "$role" != scheduler ] || tell_job
}

tell_job() {
  aws s3api get-object --bucket "$jobs" --key '@CONTROL@' "$tmp/control" || return
  aws stepfunctions send-task-failure --error Holdfast.BootFailed --cause "$(cat "$tmp/text")" \
    --task-token "$(python3 -c 'import json, sys; print(json.load(sys.stdin)["task_token"])' < "$tmp/control")"
}

# --- fetch and check
die() { printf 'cause: %s\nremedy: %s\n' "$1" "$2"; exit 1; }

metadata() { until python3 "$tmp/metadata.py"; do sleep 2; done; }
cat > "$tmp/metadata.py" <<'PYTHON'
import sys, urllib.request as request
ask = request.build_opener(request.ProxyHandler({})).open
def get(path, method="GET", **headers):
    headers = {"X-aws-ec2-metadata-" + key: value for key, value in headers.items()}
    url = "http://169.254.169.254/latest/" + path
    return ask(request.Request(url, method=method, headers=headers), timeout=3).read().decode()
try:
    token, path = get("api/token", "PUT", **{"token-ttl-seconds": "60"}), "meta-data/iam/security-credentials/"
    get(path + get(path, token=token).split()[0], token=token)
except Exception as error:
    print("cause: the instance metadata service gives no credentials: %s" % error)
    sys.exit("remedy: check the launch template's metadata options and its instance profile")
PYTHON

# setting NAME...: a value of the configuration.
setting() {
  python3 -c 'import functools, json, sys
print(functools.reduce(dict.get, sys.argv[1:], json.load(open("/etc/holdfast/node.json"))))' "$@"
}

# fetch NAME FILE: the configuration's object NAME.
fetch() {
  local bucket key wanted got said tries=0
  bucket=$(setting "$1" bucket) key=$(setting "$1" key) wanted=$(setting "$1" sha256)
  # The AWS CLI gives up on a download that breaks off.
  until said=$(aws s3api get-object --bucket "$bucket" --key "$key" "$2" 2>&1 > /dev/null); do
    ((++tries < 3)) || die "the $1 s3://$bucket/$key cannot be fetched: ${said##*$'\n'}" \
      'let the role, the S3 endpoint, its route and the bucket allow it; deploy again if it is gone'
    sleep 3
  done
  got=$(sha256sum "$2")
  [ "${got%% *}" = "$wanted" ] ||
    die "the $1 s3://$bucket/$key must have the SHA-256 $wanted, got ${got%% *}" \
      'deploy again, or find out who changed it'
}

bundle() {
  fetch bundle "$disk/bundle.zip"
  rm -rf "$code" "$code.new"
  python3 -m zipfile -e "$disk/bundle.zip" "$code.new" && mv "$code.new" "$code"
  [ -f "$code/install.sh" ] || die 'the node bundle holds no install.sh' 'it is for local hosts only: deploy another'
}

role='@ROLE@' jobs='@JOBS_BUCKET@' install=$code/install.sh
export code disk instance jobs role tmp
export -f bundle die fetch metadata setting store tell tell_job
phase metadata 60 metadata
phase fetch 120 bundle

# --- install and start
phase packages 240 bash "$install" packages
lock=$(setting wheelhouse lock)
bash "$install" has-environment "$lock" || phase wheels 240 fetch wheelhouse "$disk/wheels.zip"
phase environment 300 bash "$install" environment "$lock" "$disk/wheels.zip"
phase install 60 bash "$install" node "$role"
phase scratch 90 bash "$install" scratch
phase mount 90 bash "$install" mount
phase firewall 30 bash "$install" firewall
phase ports 15 bash "$install" ports
phase enrol 180 bash "$install" start
nice -n 19 bash -c store  # for people only
