"""Pages and files that have to say the same do."""

import json
import re
import tomllib
import unittest

import yaml

import readme
from harness import CHART, ROOT, notes, template

README = CHART / "README.md"


class Described(unittest.TestCase):
    maxDiff = None

    def test_the_tables_are_the_schemas(self):
        _, inside, _ = readme.split(README.read_text())
        self.assertEqual(inside.strip(), readme.table().strip(), "write them anew: python helm/tests/readme.py --write")

    def test_the_schema_has_what_values_yaml_has(self):
        """At every level that the schema closes, and nothing without a description."""
        schema = json.loads((CHART / "values.schema.json").read_text())
        values = yaml.safe_load((CHART / "values.yaml").read_text())

        def look(below: dict, here, path: str):
            if "properties" not in below:
                return
            self.assertIs(below["additionalProperties"], False, path)
            known = below["properties"].keys() - (set(readme.PARENTS) if not path else set())
            if path.endswith("Probe"):
                self.assertLessEqual(here.keys(), known)
                return
            if not path.endswith("resources"):
                self.assertEqual(known, here.keys(), path or "at the top")
            for key, deeper in below["properties"].items():
                self.assertTrue(deeper.get("description"), f"{path}.{key}")
                look(deeper, here.get(key) if here else None, f"{path}.{key}")

        look(schema, values, "")

    def test_the_version_is_the_programs(self):
        version = tomllib.loads((ROOT / "Cargo.toml").read_text())["workspace"]["package"]["version"]
        chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
        self.assertEqual((chart["version"], chart["appVersion"]), (version, version))

    def test_the_example_of_a_deployment_is_the_one_that_is_tested(self):
        (shown,) = re.findall(r"```yaml\n(\{\{- \$proxy.*?)```", README.read_text(), re.S)
        self.assertEqual(shown, (ROOT / "helm" / "tests" / "parent" / "templates" / "deployment.yaml").read_text())

    def test_the_example_of_values_renders(self):
        (shown,) = re.findall(r"```yaml\n(config:.*?)```", README.read_text(), re.S)
        values = yaml.safe_load(shown)
        self.assertGreater(len(template(files=(), changes=values)), 8)
        said = [line for line in notes(files=(), changes=values).splitlines() if line.startswith("WARNING")]
        # It begins in shadow, and lets go on in an outage, as the program does by default.
        self.assertEqual(len(said), 2, said)

    def test_links_lead_somewhere(self):
        for link in re.findall(r"\]\(([^)#]+)[^)]*\)", README.read_text()):
            if not link.startswith("http"):
                self.assertTrue((CHART / link).exists(), link)

    def test_canary_files_are_named(self):
        for file in (CHART / "canary").iterdir():
            self.assertIn(f"canary/{file.name}", README.read_text())
