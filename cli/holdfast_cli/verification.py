"""Does this directory hold exactly the model that was signed? Holdfast's own check, then the official library's.

`holdfast_node.models` decides like a node does. The official `model_signing` library judges the same bytes besides,
so that a mistake in one of the two is not enough.
"""

import contextlib
import io
import tempfile
from pathlib import Path

from holdfast_node.models import SIGNATURE_NAME, ModelRefused, VerifiedModel
from holdfast_node.models import verify_model as verify_as_a_node


def verify_model(directory: Path, signature: Path, public_key_pem: bytes) -> VerifiedModel:
    """Return the model in `directory` if it holds exactly what `signature` lists, byte for byte.

    The signature may lie inside the directory; every other file must be signed.

    Raises:
        ModelRefused: any difference, a link or special file, or no valid record; the message names the file.
    """
    model = verify_as_a_node(directory, signature, public_key_pem)
    _verify_officially(model, signature, public_key_pem)
    return model


def _verify_officially(model: VerifiedModel, signature: Path, pem: bytes) -> None:
    from model_signing import hashing, verifying

    own, directory = signature.resolve(), model.directory.resolve()
    with tempfile.TemporaryDirectory() as scratch:
        # Copies of what was read above, so that the library checks the same bytes.
        bundle, key = Path(scratch, SIGNATURE_NAME), Path(scratch, "model.pem")
        bundle.write_bytes(model.bundle)
        key.write_bytes(pem)
        config = hashing.Config().use_file_serialization(hashing_algorithm="sha256", allow_symlinks=False)  # type: ignore[no-untyped-call]
        inside = [own.relative_to(directory).as_posix()] if own.is_relative_to(directory) else []
        config.set_ignored_paths(paths=inside, ignore_git_paths=False)
        verifier = verifying.Config().use_elliptic_key_verifier(public_key=key).set_hashing_config(config)  # type: ignore[no-untyped-call]
        try:
            # The library prints its warnings; on standard output they would spoil a JSON document.
            with contextlib.redirect_stdout(io.StringIO()):
                verifier.verify(directory, bundle)
        except Exception as error:  # the library raises what its parsers raise: any of it means no
            raise ModelRefused(f"{SIGNATURE_NAME}: {type(error).__name__}: {error}") from None
