"""The posture of a deployed cluster, read back through AWS's APIs: what `holdfast verify` looks at.

`calls` lists every call there is, and the permissions they take. `reading` makes them. `inventory` says which resources
are the cluster's. One module per subject holds the checks, and `checks` runs them all into a `report`.
"""
