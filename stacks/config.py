"""Reading a settings file: one frozen, checked model, or one message that says what to change.

ConfigError is a HoldfastError (holdfast_node.contract), so that the app reports it without a traceback.
"""

import argparse
import difflib
import json
import sys
import tomllib
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from holdfast_node.contract.errors import HoldfastError
from stacks.settings import SettingError, Settings

ROOT = Path(__file__).resolve().parent.parent
DEFAULT_SETTINGS = "local"
_TOML_TYPES = {
    bool: "a boolean",
    int: "an integer",
    float: "a number",
    str: "a string",
    dict: "a table",
    list: "an array",
}
_EXPECTED = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "string_type": "a string",
    "list_type": "an array",
    "model_type": "a table",
    "model_attributes_type": "a table",
}


class ConfigError(HoldfastError):
    """Settings that cannot be deployed; the message names file, section and key, what is allowed and what to do."""


def load(name: str, *, root: Path = ROOT) -> Settings:
    """Return the settings in `settings/<name>.toml` below `root`, checked.

    Raises:
        ConfigError: there is no such file, it is not TOML, or a value in it is impossible.
    """
    directory = root / "settings"
    available = sorted(path.stem for path in directory.glob("*.toml"))
    if name not in available:
        raise ConfigError(
            f"-c settings must be one of {', '.join(available) or '(none)'}, got {name!r}{_suggest(name, available)}; "
            f"each is a file in {_shown(directory, root)}/"
        )
    path = directory / f"{name}.toml"
    where = _shown(path, root)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{where}: not valid TOML: {error}; see toml.io for the format") from None
    try:
        return Settings.model_validate(values)
    except ValidationError as error:
        details = error.errors(include_url=False)
        raise ConfigError("\n".join(f"{where}: {_message(detail)}" for detail in details)) from None


def schema() -> str:
    """Return the JSON Schema of a settings file, for editors."""
    return json.dumps(Settings.model_json_schema(), indent=2, sort_keys=True) + "\n"


def _message(detail: ErrorDetails) -> str:
    cause = detail.get("ctx", {}).get("error")
    if isinstance(cause, SettingError):
        return str(cause)
    location = [str(part) for part in detail["loc"]]
    place = _place(location)
    field = _field(location)
    remedy = f"; set it to {field.description}" if field is not None and field.description else ""
    kind, value = detail["type"], detail["input"]
    if kind == "extra_forbidden":
        siblings = sorted(_model(location[:-1]).model_fields)
        return (
            f"{place} is unknown, allowed: {', '.join(siblings)}{_suggest(location[-1], siblings)}; "
            "remove it or correct its name"
        )
    if kind == "missing":
        return f"{place} is missing{remedy or '; add this table'}"
    if expected := _EXPECTED.get(kind):
        got_kind = _TOML_TYPES.get(type(value), f"a {type(value).__name__}")
        return f"{place} must be {expected}, got {_shown_value(value)} ({got_kind}){remedy}"
    got = f"got {_shown_value(value)}"
    if kind in ("greater_than_equal", "less_than_equal"):
        low, high = _bounds(location)
        return f"{place} must be between {low} and {high}, {got}{remedy}"
    if kind == "enum":
        return f"{place} must be {detail['ctx']['expected']}, {got}{remedy}"
    if kind == "string_pattern_mismatch":
        return f"{place} must match {detail['ctx']['pattern']}, {got}{remedy}"
    return f"{place}: {detail['msg']}, {got}{remedy}"


def _place(location: list[str]) -> str:
    if len(location) == 1:
        return f"[{location[0]}]"
    return f"[{location[0]}] {'.'.join(location[1:])}"


def _model(location: list[str]) -> type[BaseModel]:
    model: type[BaseModel] = Settings
    for part in location:
        annotation = model.model_fields[part].annotation
        assert isinstance(annotation, type) and issubclass(annotation, BaseModel)
        model = annotation
    return model


def _field(location: list[str]) -> FieldInfo | None:
    parents = location[:1] if len(location) > 1 else []
    if parents and parents[0] not in Settings.model_fields:
        return None
    return _model(parents).model_fields.get(location[len(parents)])


def _bounds(location: list[str]) -> tuple[float, float]:
    """Return the least and the most that a number may be, as its schema has them."""
    described = _model(location[:-1]).model_json_schema()["properties"][location[-1]]
    number = next((kind for kind in described.get("anyOf", ()) if "minimum" in kind), described)
    return number["minimum"], number["maximum"]


def _shown_value(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)[:80]


def _suggest(name: str, names: list[str]) -> str:
    close = difflib.get_close_matches(name, names, n=1)
    return f" (did you mean {close[0]}?)" if close else ""


def _shown(path: Path, root: Path) -> str:
    return path.relative_to(root).as_posix()


def main() -> None:
    """Print the JSON Schema of a settings file."""
    parser = argparse.ArgumentParser(prog="python -m stacks.config", description=main.__doc__)
    parser.add_argument("--schema", action="store_true", required=True, help="print the JSON Schema")
    parser.parse_args()
    sys.stdout.write(schema())


if __name__ == "__main__":
    main()
