"""The names by which AWS's services are called in a region, which the embedded AWS answers for."""

#: Names the file that decisions on permissions are recorded in, for proofs of least privilege; unset, none are.
RECORD_VARIABLE = "HOLDFAST_RECORD_CALLS"

#: Where S3's oldest name stands for the region too, and SDKs still use it (Amazon S3 User Guide, "Legacy endpoints").
_GLOBAL_S3_REGION = "us-east-1"


def service_names(service: str, region: str) -> tuple[str, ...]:
    """Return a service's names in a region; one that begins with `*.` stands for every name below it."""
    name = f"{service}.{region}.amazonaws.com"
    if service != "s3":
        return (name,)
    names = (name, "s3.amazonaws.com") if region == _GLOBAL_S3_REGION else (name,)
    return (*names, *(f"*.{name}" for name in names))


def certified_names(region: str) -> tuple[str, ...]:
    """Return the names that the embedded AWS's certificate is for, so that clients may use AWS's own."""
    return (f"*.{region}.amazonaws.com", *service_names("s3", region))
