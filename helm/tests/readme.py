"""The tables of values in the chart's README, from values.schema.json and values.yaml: `readme.py --write` writes them anew."""

import json
import pathlib
import sys

import yaml

CHART = pathlib.Path(__file__).resolve().parents[1] / "dotmac-license-proxy"
BEGIN, END = "<!-- values: written by helm/tests/readme.py -->", "<!-- /values -->"
# For a parent chart; values.yaml does not have them.
PARENTS = ("enabled", "global")


def leaves(schema: dict, path: tuple = ()):
    """Every value that is described by itself, as (path, schema)."""
    for key, below in schema["properties"].items():
        if key in PARENTS and not path:
            continue
        if "properties" in below and path + (key,) not in WHOLE:
            yield from leaves(below, (*path, key))
        else:
            yield (*path, key), below


# Objects that are one row, though their keys are listed in the schema.
WHOLE = {
    *((("secrets", name)) for name in ("databaseUrl", "licenseDbUrl", "redisUrl", "adminToken")),
    *((("sidecar", name)) for name in ("resources", "startupProbe", "readinessProbe", "livenessProbe")),
    ("image",), ("backend", "image"), ("backend", "resources"), ("helmTest", "image"), ("migration", "databaseUrl"), ("jobs", "resources"), ("relay", "resources"),
    *((("networkPolicy", "egress", name)) for name in ("dns", "postgres", "redis")),
}


def default_of(values: dict, path: tuple) -> str:
    for key in path:
        values = values[key]
    text = json.dumps(values, ensure_ascii=False)
    return f"`{text}`" if len(text) <= 60 else "see values.yaml"


def table() -> str:
    schema = json.loads((CHART / "values.schema.json").read_text())
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    lines = []
    section = None
    for path, below in leaves(schema):
        if len(path) > 1 and path[0] != section:
            about = schema["properties"][path[0]]["description"]
            lines += ["", f"**`{path[0]}`** {about}", "", "| value | default | |", "|---|---|---|"]
        elif len(path) == 1 and (section is None or section != ""):
            lines += ["", "| value | default | |", "|---|---|---|"]
        section = path[0] if len(path) > 1 else ""
        about = below["description"].replace("|", "\\|")
        choices = below.get("enum")
        if choices and not all(f"`{choice}`" in about for choice in choices):
            about += " One of " + ", ".join(f"`{choice}`" for choice in choices) + "."
        lines.append(f"| `{'.'.join(path)}` | {default_of(values, path)} | {about} |")
    return "\n".join(lines).strip() + "\n"


def split(text: str) -> tuple[str, str, str]:
    before, rest = text.split(BEGIN + "\n")
    inside, after = rest.split(END)
    return before, inside, after


def main() -> None:
    readme = CHART / "README.md"
    before, _, after = split(readme.read_text())
    text = f"{before}{BEGIN}\n\n{table()}\n{END}{after}"
    if sys.argv[1:] == ["--write"]:
        readme.write_text(text)
    else:
        print(text)


if __name__ == "__main__":
    main()
