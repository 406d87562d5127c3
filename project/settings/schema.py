"""The JSON schema of params.yaml, by which an editor checks the file while it is typed.

    python -m project.settings.schema

writes it to `project/settings/params.schema.json`.
"""

import json
from pathlib import Path
from typing import Any

from project.atomic import replaced_file
from project.settings.sections import Settings

SCHEMA = Path(__file__).with_name("params.schema.json")


def params_schema() -> dict[str, Any]:
    """The JSON schema of params.yaml, with the axes of every registered architecture."""
    from architectures import REGISTRY

    document = Settings.model_json_schema()
    blocks = {}
    for name, architecture in sorted(REGISTRY.items()):
        own = architecture.Hyperparameters.model_json_schema()
        document["$defs"][f"{name} axes"] = {
            "description": architecture.source,
            "type": "object",
            "additionalProperties": False,
            "properties": {
                axis: {"type": "array", "minItems": 1, "items": rule}
                for axis, rule in own.get("properties", {}).items()
            },
        }
        block = {"$ref": f"#/$defs/{name} axes"}
        blocks[name] = {"oneOf": [block, {"type": "array", "minItems": 1, "items": block}]}
    document["$defs"]["Grid"]["properties"]["architectures"].update(properties=blocks, additionalProperties=False)
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "params.yaml of Recast", **document}


if __name__ == "__main__":
    with replaced_file(SCHEMA) as temporary:
        temporary.write_text(json.dumps(params_schema(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
