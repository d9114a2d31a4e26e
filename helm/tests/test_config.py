"""What the chart makes of `config` is what the real program takes."""

import json
import pathlib
import unittest

import yaml

from harness import CANARY, COMBINATIONS, ROOT, check_config, config_of, deployment, parent, rendered, template

KEYS = {"jwks.json": json.dumps({"keys": [{"kty": "oct", "k": "c2VjcmV0LXNlY3JldC1zZWNyZXQtc2VjcmV0LXNlY3JldA", "alg": "HS256"}]})}
LICENCES = {"licenses.yaml": (ROOT / "config" / "licenses.yaml").read_text()}


class Configuration(unittest.TestCase):
    def accepted(self, text: str, *arguments: str) -> str:
        ended = check_config(text, *arguments, beside=KEYS | LICENCES)
        self.assertEqual(ended.returncode, 0, f"{ended.stdout}{ended.stderr}\n{text}")
        return ended.stdout

    def test_every_combination_is_accepted(self):
        for combination in set(COMBINATIONS) - {"existing", "file"}:
            self.assertIn(": ok (", self.accepted(config_of(rendered(combination))), combination)
        # No plan of the minimal values is in the shipped file of licences: this one names the plans as well.
        plans = {"config": {"plans": [{"name": name, "features": ["crm"]} for name in ("starter", "professional", "enterprise")]}}
        self.assertIn(": ok (", self.accepted(config_of(template(files=["minimal", "file"], changes=plans))))

    def test_the_parents_as_well(self):
        self.assertIn("shadow", self.accepted(config_of(template(files=(), chart=parent()))))

    def test_the_shipped_map_goes_through_unchanged(self):
        """config/dotmac.yaml as `config`, all of it, means what it means as a file."""
        shipped = yaml.safe_load((ROOT / "config" / "dotmac.yaml").read_text())
        inside = {key: value for key, value in shipped.items() if key not in ("listen", "upstream")}
        changes = {"config": inside, "sidecar": {"workers": 0}, "upstream": {"type": "loopback", "port": 8000}, "secrets": {"databaseUrl": {"secretName": "x"}}}
        text = config_of(template(files=(), changes=changes | {"workload": {"selector": {"a": "b"}}}))
        said = [yaml.safe_load(self.accepted(t, "--print-effective")) for t in (text, (ROOT / "config" / "dotmac.yaml").read_text())]
        self.assertEqual(said[0], said[1])

    def test_numbers_stay_numbers(self):
        effective = yaml.safe_load(self.accepted(config_of(rendered("everything")), "--print-effective"))
        self.assertEqual(effective["usage"]["pending_entries"], 1000000)
        effective = yaml.safe_load(self.accepted(config_of(template(changes={"config": {"enforcement": {"rollout": {"percent": 2.5}}}})), "--print-effective"))
        self.assertEqual(effective["enforcement"]["rollout"]["percent"], 2.5)

    def test_what_the_program_refuses_it_refuses_here(self):
        for keys, wanted in (({"plan": []}, "plan"), ({"licenses": {"ttl": 5}}, "ttl"), ({"trusted_proxies": []}, "trusted_proxies")):
            ended = check_config(config_of(template(changes={"config": keys})))
            self.assertEqual(ended.returncode, 2)
            self.assertIn(wanted, ended.stderr)

    def test_listeners_are_where_ports_and_probes_are(self):
        for changes in ({}, {"ports": {"proxy": 8081, "ops": 9999, "admin": 0}}, {"bindAddress": "[::]"}):
            objects = template(changes=changes)
            listen = yaml.safe_load(self.accepted(config_of(objects), "--print-effective"))["listen"]
            gate = deployment(objects)["spec"]["initContainers"][0]
            ports = {p["name"]: p["containerPort"] for p in gate["ports"]}
            bind = changes.get("bindAddress", "0.0.0.0")
            self.assertEqual((listen["proxy"], listen["ops"]), (f"{bind}:{ports['http']}", f"{bind}:{ports['ops']}"))
            self.assertEqual(listen.get("admin"), None if "ports" in changes else "127.0.0.1:9090")
            for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
                self.assertEqual(gate[probe]["httpGet"]["port"], ports["ops"])

    def test_the_same_tenants_stay_in_as_the_share_grows(self):
        effective = [yaml.safe_load(self.accepted(config_of(rendered(f"canary-{p}")), "--print-effective")) for p in (5, 25, 50, 100)]
        rollouts = [e["enforcement"]["rollout"] for e in effective]
        self.assertEqual([r["percent"] for r in rollouts], [5, 25, 50, 100])
        self.assertEqual({r["salt"] for r in rollouts}, {"canary"})
        self.assertEqual({e["enforcement"]["mode"] for e in effective}, {"enforce"})
        self.assertEqual(sorted(pathlib.Path(CANARY).iterdir()), sorted(CANARY / f"values-{p}.yaml" for p in (5, 25, 50, 100)))

    def test_null_takes_a_key_out(self):
        for keys in ({"shutdown": None}, {"enforcement": None}, {"licenses": {"change_feed": None}}, {"routes": {"rules": [{"prefix": "/a", "feature": "a", "meter": None}]}}):
            text = config_of(template(changes={"config": keys}))
            self.assertNotIn("null", text)
            self.accepted(text)
