"""What several tests of the node share."""

from holdfast_node.contract.documents import CodeArchive, JobDocument

JOB = JobDocument(
    job_id="digits-1",
    cluster="demo",
    engine="mxnet",
    entry="train.py",
    args=(),
    workers=2,
    servers=1,
    model_dir="model",
    timeout_seconds=600,
    code=CodeArchive(sha256="a" * 64, size=10),
)
