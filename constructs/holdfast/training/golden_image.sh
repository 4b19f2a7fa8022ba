#!/bin/bash
# Bakes what nodes otherwise install at their first boot into the image that this instance becomes; as root, run by EC2
# Image Builder. Nothing of the bundle or of the wheels runs before its SHA-256 is right. Two braces in a row would be
# Image Builder's own.
set -euo pipefail
umask 022
export LC_ALL=C.UTF-8 AWS_DEFAULT_REGION='@REGION@' AWS_PAGER='' AWS_RETRY_MODE=standard AWS_MAX_ATTEMPTS=6
disk=$(mktemp -d /var/tmp/holdfast-bake.XXXXXX)
trap 'rm -rf "$disk"' EXIT

# fetch BUCKET KEY SHA256 FILE
fetch() {
  local tries=0
  # The AWS CLI gives up on a download that breaks off.
  until aws s3api get-object --bucket "$1" --key "$2" "$4" > /dev/null; do
    ((++tries < 3)) || { echo "cause: s3://$1/$2 cannot be fetched" && exit 1; }
    sleep 3
  done
  echo "$3  $4" | sha256sum --check --strict --quiet ||
    { echo "cause: s3://$1/$2 must have the SHA-256 $3; deploy again, or find out who changed it" && exit 1; }
}

fetch '@BUNDLE_BUCKET@' '@BUNDLE_KEY@' '@BUNDLE_SHA256@' "$disk/bundle.zip"
fetch '@WHEELS_BUCKET@' '@WHEELS_KEY@' '@WHEELS_SHA256@' "$disk/wheels.zip"
python3 -m zipfile -e "$disk/bundle.zip" "$disk/bundle"
bash "$disk/bundle/install.sh" --bake '@LOCK@' "$disk/wheels.zip"
# What a node asks before it installs: this image answers that there is nothing to do.
bash "$disk/bundle/install.sh" has-environment '@LOCK@'
