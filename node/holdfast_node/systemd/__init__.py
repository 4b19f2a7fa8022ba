"""What the units of `node/units` run beside the node's services: systemd's side of `contract.services`."""
