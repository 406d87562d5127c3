"""The JSON schema of params.yaml, with which an editor checks the file while the user types.

    python -m project.settings.schema

writes it to `project/settings/params.schema.json`.
"""

import json
from pathlib import Path
from typing import Any

from architectures import REGISTRY
from project.atomic import replace_file
from project.settings.sections import Settings

SCHEMA_FILE = Path(__file__).with_name("params.schema.json")


def build_schema() -> dict[str, Any]:
    """The JSON schema of params.yaml, with the axes of every registered architecture."""
    document = Settings.model_json_schema()
    blocks = {}
    for name, architecture in sorted(REGISTRY.items()):
        axes = architecture.Hyperparameters.model_json_schema()
        document["$defs"][f"{name} axes"] = {
            "description": architecture.source,
            "type": "object",
            "additionalProperties": False,
            "properties": {
                axis: {"type": "array", "minItems": 1, "items": rule}
                for axis, rule in axes.get("properties", {}).items()
            },
        }
        block = {"$ref": f"#/$defs/{name} axes"}
        blocks[name] = {"oneOf": [block, {"type": "array", "minItems": 1, "items": block}]}
    document["$defs"]["Grid"]["properties"]["architectures"].update(properties=blocks, additionalProperties=False)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "params.yaml of Recast", **document}


if __name__ == "__main__":
    with replace_file(SCHEMA_FILE) as temporary:
        temporary.write_text(json.dumps(build_schema(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
