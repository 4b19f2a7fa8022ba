"""What a Holdfast node runs: identity, wire, jobs and the sandboxed trainer."""
