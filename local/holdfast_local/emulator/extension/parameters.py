"""The public AMI parameters that templates name, so that `AWS::SSM::Parameter::Value<AWS::EC2::Image::Id>` resolves.

Every image id stands for this machine: the local hosts boot no image. Ids are derived from the parameter's name, so
that they are the same at every start.
"""

import hashlib
import re
from typing import Any

from holdfast_local.emulator.extension.seams import seam

_PUBLIC_AMI = re.compile(r"/aws/service/(ami-amazon-linux-latest/[\w.-]+|deeplearning/ami/[\w./-]+)")


def install() -> None:
    """Answer for every Amazon Linux and deep-learning AMI parameter."""
    ssm = seam("ministack.services.ssm", "_public_parameter", "_PUBLIC_AMI_PARAMETERS")
    stock = ssm._public_parameter

    def public_parameter(name: str) -> Any:
        known = stock(name)
        if known is not None or not _PUBLIC_AMI.fullmatch(name):
            return known
        template = stock(next(iter(ssm._PUBLIC_AMI_PARAMETERS)))
        arn = template["ARN"].partition(":parameter")[0] + f":parameter{name}"
        return template | {"Name": name, "Value": image_id(name), "ARN": arn}

    ssm._public_parameter = public_parameter


def image_id(name: str) -> str:
    """Return the image id that the public parameter `name` stands for here."""
    return f"ami-{hashlib.sha256(name.encode()).hexdigest()[:17]}"
