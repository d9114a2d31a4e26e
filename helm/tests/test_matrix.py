"""Every combination of values under each Helm, against each Kubernetes' own schemas."""

import functools
import itertools
import json
import unittest

import kubernetes_validate
import yaml

from harness import (CHART, COMBINATIONS, HELMS, KUBERNETES, all_of, arguments_of, in_parallel, parent, rendered, run_helm, template)

# Of the Prometheus operator; the tests below look at them.
FOREIGN = {"ServiceMonitor", "PodMonitor", "PrometheusRule"}


# It reads a megabyte of definitions again for each object; they are the same each time.
kubernetes_validate.utils.schema_contents = functools.cache(kubernetes_validate.utils.schema_contents)


def validate(objects: list[dict], kubernetes: str, where: str) -> None:
    for o in objects:
        if o["kind"] in FOREIGN:
            continue
        try:
            kubernetes_validate.validate(o, kubernetes, strict=True)
        except kubernetes_validate.ValidationError as error:
            raise AssertionError(f"{where}: {o['kind']} {o['metadata']['name']}: {error.message} at {list(error.path)}") from error


class Matrix(unittest.TestCase):
    def test_lint_is_silent(self):
        def lint(case):
            (name, files), helm, kubernetes = case
            said = run_helm(helm, "lint", "--strict", str(CHART), "--kube-version", kubernetes, *arguments_of(files, None))
            for level in ("WARNING", "ERROR"):
                self.assertNotIn(f"[{level}]", said, f"{name}, Helm {helm}, Kubernetes {kubernetes}")

        in_parallel(lint, itertools.product(COMBINATIONS.items(), HELMS, KUBERNETES))

    def test_every_object_is_one_that_kubernetes_takes(self):
        cases = list(itertools.product(COMBINATIONS, HELMS, KUBERNETES))
        in_parallel(lambda case: rendered(*case), cases)
        seen = set()
        for combination, helm, kubernetes in cases:
            objects = rendered(combination, helm, kubernetes)
            self.assertGreater(len(objects), 3)
            texts = [(kubernetes, json.dumps(o, sort_keys=True)) for o in objects]
            objects = [o for o, text in zip(objects, texts) if text not in seen]
            seen.update(texts)
            validate(objects, kubernetes, f"{combination}, Helm {helm}, Kubernetes {kubernetes}")

    def test_the_validator_finds_what_is_wrong(self):
        objects = template()
        for o in all_of(objects, "Deployment"):
            o["spec"]["template"]["spec"]["terminationGracePeriod"] = 1
        with self.assertRaisesRegex(AssertionError, "terminationGracePeriod"):
            validate(objects, "1.33.0", "here")
        # What newer clusters alone have.
        with self.assertRaisesRegex(AssertionError, "'sleep' was unexpected"):
            validate(template(), "1.28.0", "here")

    def test_both_helms_render_the_same(self):
        for combination, kubernetes in itertools.product(COMBINATIONS, KUBERNETES):
            def key(o):
                return (o["kind"], o["metadata"]["name"])

            first, second = (sorted(rendered(combination, helm, kubernetes), key=key) for helm in HELMS)
            self.assertEqual(first, second, f"{combination}, {kubernetes}")

    def test_older_clusters_get_the_plain_form(self):
        for kubernetes in ("1.27.0", "1.28.0"):
            objects = template(kubernetes=kubernetes)
            validate(objects, kubernetes, kubernetes)
            pod = all_of(objects, "Deployment")[0]["spec"]["template"]["spec"]
            self.assertEqual([c["name"] for c in pod["containers"]], ["license-proxy", "backend"])
            self.assertNotIn("initContainers", pod)

    def test_a_parent_chart(self):
        for helm, kubernetes in itertools.product(HELMS, KUBERNETES):
            chart = parent(helm)
            self.assertNotIn("[ERROR]", run_helm(helm, "lint", "--strict", str(chart)))
            objects = template(helm, kubernetes, (), chart=chart)
            validate(objects, kubernetes, f"parent, Helm {helm}")
            plain = template(helm, kubernetes, (), {"dotmac-license-proxy": {"sidecar": {"native": "never"}}}, chart)
            validate(plain, kubernetes, f"parent, plain, Helm {helm}")

    def test_the_objects_of_the_prometheus_operator(self):
        objects = rendered("everything")
        monitors = all_of(objects, "ServiceMonitor")
        self.assertEqual([m["metadata"]["name"] for m in monitors], ["backend", "backend-relay"])
        services = {o["metadata"]["name"]: o for o in all_of(objects, "Service")}
        for monitor, service in zip(monitors, ("backend-ops", "backend-relay"), strict=True):
            self.assertEqual(monitor["apiVersion"], "monitoring.coreos.com/v1")
            self.assertEqual(monitor["metadata"]["labels"]["release"], "prometheus")
            (endpoint,) = monitor["spec"]["endpoints"]
            self.assertEqual(endpoint, {"port": "ops", "path": "/metrics", "interval": "15s", "scrapeTimeout": "10s"})
            wanted = monitor["spec"]["selector"]["matchLabels"].items()
            selected = [name for name, o in services.items() if wanted <= o["metadata"]["labels"].items()]
            self.assertEqual(selected, [service])
            self.assertIn("ops", [p["name"] for p in services[service]["spec"]["ports"]])
        (monitor,) = all_of(rendered("env"), "PodMonitor")
        (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
        pod = all_of(rendered("env"), "Deployment")[0]["spec"]["template"]
        self.assertLessEqual(monitor["spec"]["selector"]["matchLabels"].items(), pod["metadata"]["labels"].items())
        self.assertIn(endpoint["port"], [p["name"] for p in pod["spec"]["initContainers"][0]["ports"]])

    def test_rules_and_dashboard_are_those_that_the_chart_ships(self):
        objects = rendered("everything")
        (rule,) = all_of(objects, "PrometheusRule")
        text = (CHART / "files" / "prometheus-rules.yaml").read_text()
        here = "https://runbooks.example.com/alerts"
        there = "https://github.com/dotmac/dotmac-license-proxy/blob/main/docs/alerts.md"
        self.assertEqual(rule["spec"]["groups"], yaml.safe_load(text.replace(there, here))["groups"])
        for group in rule["spec"]["groups"]:
            self.assertLessEqual({"name", "rules"}, group.keys())
            for entry in group["rules"]:
                self.assertEqual(len({"record", "alert"} & entry.keys()), 1, entry)
                self.assertIsInstance(entry["expr"], str)
                if "alert" in entry:
                    self.assertEqual(entry["annotations"]["runbook_url"].split("#")[0], here)
        (dashboard,) = [o for o in all_of(objects, "ConfigMap") if "dotmac-license-proxy.json" in o["data"]]
        self.assertEqual(dashboard["metadata"]["labels"]["grafana_dashboard"], "1")
        shipped = json.loads((CHART / "files" / "dashboard.json").read_text())
        self.assertEqual(json.loads(dashboard["data"]["dotmac-license-proxy.json"]), shipped)
