#!/bin/bash
# Makes a Holdfast node of this machine, from the verified bundle that this file lies in; as root. The steps, in order;
# each may be run again:
#   packages                     what the operating system must have: the only part that knows which one it is
#   has-environment LOCK         says, by its status, whether the next step has nothing to do: a baked image
#   environment LOCK WHEELS.zip  /opt/holdfast/venv, from these wheels and by the hashes of the bundle's file LOCK
#   node ROLE                    users, directories, systemd units, settings of the host
#   scratch                      the volume of its own for the trainer's work directory, where there is one
#   mount                        the checkpoint file system, for roles that have one
#   firewall, ports, start       the node's own rules; its port is free; the rest, until the node has enrolled
# For an image: install.sh --bake LOCK WHEELS.zip does the packages and the environment, and nothing that a node has.
# A step that fails says why on lines `cause: ...` and `remedy: ...`.
set -euo pipefail
umask 022
bundle=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
venv=/opt/holdfast/venv
stamp=$venv/lock.sha256

# What runs the node, what makes the scratch volume's file system, and the two libraries that MXNet's wheel links and
# does not carry.
AMAZON=(python3.11 stunnel nftables amazon-efs-utils e2fsprogs libgomp libquadmath)
DEBIAN=(python3.11-venv stunnel4 nftables ca-certificates libgomp1 libquadmath0)

die() {
  printf 'cause: %s\nremedy: %s\n' "$1" "$2"
  exit 1
}

last_line() { tail -n1 <<< "${1:-it said nothing}"; }

packages() {
  local said missing=() package
  # shellcheck source=/dev/null
  . /etc/os-release
  case $ID in
    amzn)
      # A baked image has them: no metadata of repositories is read then.
      if rpm --quiet -q "${AMAZON[@]}"; then return; fi
      said=$(dnf -y -q --setopt=install_weak_deps=False install "${AMAZON[@]}" 2>&1) ||
        die "dnf cannot install ${AMAZON[*]}: $(last_line "$said")" \
          'the S3 endpoint must allow the repositories of Amazon Linux 2023 (holdfast/network.py); or bake an image'
      ;;
    debian)
      for package in "${DEBIAN[@]}"; do
        [[ $(dpkg-query -W -f '${db:Status-Abbrev}' "$package" 2> /dev/null) == ii* ]] || missing+=("$package")
      done
      ((${#missing[@]} == 0)) || die "the image lacks the packages ${missing[*]}" 'bake them: nodes reach no repository'
      ;;
    *)
      die "the operating system $ID is none that nodes run on: amzn, debian" 'use an image of Amazon Linux 2023'
      ;;
  esac
}

locked() {
  local digest
  [[ $1 =~ ^[a-z0-9][a-z0-9._-]*$ && -f $bundle/$1 ]] ||
    die "the bundle has no lock file $1" 'deploy again: bundle and configuration are not of one version'
  digest=$(sha256sum < "$bundle/$1")
  echo "${digest%% *}"
}

has_environment() {
  local lock
  lock=$(locked "$1") || { echo "$lock" && exit 1; }
  [ -f "$stamp" ] && [ "$(stat -c %u "$stamp")" = 0 ] && [ "$(cat "$stamp")" = "$lock" ]
}

environment() {
  local said missing wheels
  if has_environment "$1"; then return; fi
  rm -rf "$venv"
  wheels=$(mktemp -d /var/tmp/holdfast-wheels.XXXXXX)
  # shellcheck disable=SC2064 # its value now: the variable is this function's
  trap "rm -rf '$wheels'" EXIT
  python3 -m zipfile -e "$2" "$wheels" || die 'the wheels are no zip archive' 'deploy again'
  python3.11 -m venv "$venv" || die 'python3.11 makes no virtual environment' 'the image must have its venv module'
  # No variable of the environment and no file of settings may lead pip elsewhere.
  said=$(env -i PATH=/usr/bin:/bin LC_ALL=C.UTF-8 PIP_CONFIG_FILE=/dev/null "$venv/bin/python" -I -m pip install \
    --quiet --no-index --find-links "$wheels" --require-hashes --no-deps --only-binary :all: --no-cache-dir \
    --disable-pip-version-check --requirement "$bundle/$1" 2>&1) || {
    echo "$said"
    die "the packages of $1 cannot be installed: $(grep -m 1 '^ERROR: ' <<< "$said" || last_line "$said")" \
      'deploy again; if it stays, delete .build/wheelhouse-* first, so that the wheels are downloaded anew'
  }
  "$venv/bin/python" -I -c 'import boto3, cryptography, numpy' ||
    die 'the installed packages do not load' 'their wheels are for another machine: nodes are x86_64 with Python 3.11'
  PYTHONPATH=$bundle "$venv/bin/python" -B -P -m holdfast_node.engines.mxnet.cuda
  # A GPU's driver brings these two.
  missing=$(find "$venv" -name libmxnet.so -exec ldd {} + | awk '/not found/ && !/libcuda\.|libnvidia-ml\./ {print $1}')
  [ -z "$missing" ] || die "MXNet lacks the libraries ${missing//$'\n'/ }" 'the image must have them'
  locked "$1" > "$stamp"
}

node() {
  # Services cannot write their compiled modules, and would compile at every start.
  "$venv/bin/python" -I -m compileall -q "$bundle/holdfast_node"
  bash "$bundle/units/install.sh" "$1"
}

value() { python3 -c 'import json, sys; print(json.load(open("/etc/holdfast/node.json"))[sys.argv[1]])' "$1"; }

mount_checkpoints() {
  local target=/mnt/checkpoints id line said
  id=$(value file_system_id)
  if [ -z "$id" ]; then return; fi
  line="$id:/ $target efs _netdev,noresvport,tls,iam,accesspoint=$(value access_point_id) 0 0"
  if ! grep -qxF "$line" /etc/fstab; then
    sed -i "\\# $target efs #d" /etc/fstab
    echo "$line" >> /etc/fstab
    systemctl daemon-reload
  fi
  install -d -m 0755 "$target"
  # A mount target's name may take a moment to resolve; the phase's time-out ends this.
  until mountpoint -q "$target" || said=$(mount "$target" 2>&1); do
    echo "cause: the checkpoint file system $id cannot be mounted: $(last_line "$said")"
    echo 'remedy: look at its policy and access point, the role, its mount targets and port 2049'
    if [[ $said == *denied* || $said == *refused* ]]; then exit 1; fi
    sleep 3
  done
}

# start_unit NAME REMEDY: waits until the unit is ready; a failure's cause is the last error in its log, or last line.
start_unit() {
  local said log=/var/log/holdfast/$1.log
  if systemctl start "holdfast-$1.service"; then return; fi
  said=$(grep -s ' ERROR ' "$log" | tail -n1) || said=$(tail -n1 "$log" 2> /dev/null) || true
  die "$1: ${said:-the unit holdfast-$1.service did not start, and its log is empty}" "$2"
}

scratch() { PYTHONPATH=$bundle "$venv/bin/python" -B -P -m holdfast_node.scratch; }

ports() { PYTHONPATH=$bundle "$venv/bin/python" -B -P -m holdfast_node.boot; }

start() {
  start_unit agent 'holdfast logs has its other lines; a refusal says what the enrolment function found wrong'
  systemctl start holdfast.target
}

case ${1:-} in
  packages) packages ;;
  has-environment) has_environment "$2" ;;
  environment) environment "$2" "$3" ;;
  node) node "$2" ;;
  scratch) scratch ;;
  mount) mount_checkpoints ;;
  firewall) start_unit firewall 'read the log: nftables refuses the rules, or holdfast and the kernel do not fit' ;;
  ports) ports ;;
  start) start ;;
  --bake)
    packages
    environment "$2" "$3"
    ;;
  *)
    echo "usage: install.sh STEP [ARGUMENT...]; the steps are described at this file's top" >&2
    exit 64
    ;;
esac
