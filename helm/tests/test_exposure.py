"""Who can reach what: nobody reaches the backend but through the gate, and nothing in a pod may more than it must."""

import itertools
import json
import unittest

from harness import COMBINATIONS, all_of, config_of, container, containers, deployment, only, pod_specs, rendered, template

GATE = {8080, 9464}


def policies(objects: list[dict]) -> list[dict]:
    return all_of(objects, "NetworkPolicy")


def ports_of(rules: list[dict]) -> set:
    """The ports of a policy's rules; None for a rule that opens every port."""
    return {port.get("port") for rule in rules for port in rule.get("ports") or [{}]}


class Exposure(unittest.TestCase):
    def test_services_lead_to_the_gate_alone(self):
        for combination in COMBINATIONS:
            objects = rendered(combination)
            for service in all_of(objects, "Service"):
                targets = {port["targetPort"] for port in service["spec"]["ports"]}
                self.assertLessEqual(targets, GATE, f"{combination}: {service['metadata']['name']}")
                if service["spec"]["type"] != "ClusterIP":
                    self.assertEqual(targets, {8080}, f"{combination}: metrics are shown to the world")

    def test_policies_let_in_to_the_gate_alone(self):
        for combination in set(COMBINATIONS) - {"everything"}:
            objects = rendered(combination)
            self.assertTrue(policies(objects), combination)
            for policy in policies(objects):
                self.assertIn("Ingress", policy["spec"]["policyTypes"])
                self.assertLessEqual(ports_of(policy["spec"]["ingress"]), GATE, f"{combination}: {policy['metadata']['name']}")
        policy = only(rendered("everything"), "NetworkPolicy", "backend")
        self.assertEqual(ports_of(policy["spec"]["ingress"]), GATE | {9100}, "the backend's own metrics are asked for")

    def test_every_pod_has_a_policy(self):
        for combination, (name, pod) in ((c, p) for c in COMBINATIONS for p in all_pods(c)):
            if "-test" in name:
                continue
            labels = pod["metadata"]["labels"]
            selected = [p for p in policies(rendered(combination)) if selects(p["spec"]["podSelector"], labels)]
            self.assertEqual(len(selected), 1, f"{combination}: {name}")

    def test_no_port_of_the_backend_is_declared_but_those_that_are_asked_for(self):
        for combination in COMBINATIONS:
            for name, pod in pod_specs(rendered(combination)):
                for c in containers(pod):
                    ports = {port["containerPort"] for port in c.get("ports", [])}
                    allowed = GATE if c["name"] == "license-proxy" else {9100}
                    self.assertLessEqual(ports, allowed, f"{combination}: {name}: {c['name']}")

    def test_the_backend_is_asked_on_a_socket_or_on_loopback(self):
        for combination in set(COMBINATIONS) - {"existing"}:
            text = config_of(rendered(combination))
            wanted = "127.0.0.1:8123" if combination == "loopback" else "unix:/run/app/app.sock"
            self.assertIn(f"address: {wanted}\n", text, combination)
            self.assertIn("admin: 127.0.0.1:9090\n", text, combination)

    def test_the_socket_is_shared_by_gate_and_backend_alone(self):
        pod = deployment(rendered("everything"), "backend")["spec"]
        mounts = {c["name"]: [m for m in c["volumeMounts"] if m["name"] == "license-proxy-backend"] for c in containers(pod)}
        self.assertEqual(mounts["license-proxy"], [{"name": "license-proxy-backend", "mountPath": "/run/app", "readOnly": True}])
        self.assertEqual(mounts["backend"], [{"name": "license-proxy-backend", "mountPath": "/run/app"}])
        (volume,) = [v for v in pod["volumes"] if v["name"] == "license-proxy-backend"]
        self.assertIn("emptyDir", volume)
        self.assertEqual(pod["securityContext"]["fsGroup"], 65532)
        loopback = deployment(rendered("loopback"))["spec"]
        self.assertNotIn("license-proxy-backend", [v["name"] for v in loopback["volumes"]])

    def test_egress_is_what_was_said(self):
        for policy in policies(rendered("everything")):
            self.assertEqual(policy["spec"]["policyTypes"], ["Ingress", "Egress"])
            wanted = {53, 5433, 6379} | ({None} if policy["metadata"]["name"] == "backend" else set())
            self.assertEqual(ports_of(policy["spec"]["egress"]), wanted, policy["metadata"]["name"])
            for rule in policy["spec"]["egress"]:
                self.assertTrue(rule.get("to"), f"{policy['metadata']['name']}: {rule}")

    def test_who_may_ask(self):
        ingress = only(rendered("everything"), "NetworkPolicy", "backend")["spec"]["ingress"]
        namespaces = [[peer["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"] for peer in rule["from"] if "namespaceSelector" in peer] for rule in ingress]
        self.assertEqual(namespaces, [["ingress"], ["monitoring"], ["monitoring"]])
        # The pod of `helm test` is let in as well.
        test = only(rendered("everything"), "Pod", "backend-test")["metadata"]["labels"]
        for rule in ingress[:2]:
            self.assertTrue(any("podSelector" in peer and selects(peer["podSelector"], test) for peer in rule["from"]))


class Hardening(unittest.TestCase):
    def test_every_container(self):
        for combination, (name, pod) in ((c, p) for c in COMBINATIONS for p in pod_specs(rendered(c))):
            where = f"{combination}: {name}"
            self.assertIs(pod["automountServiceAccountToken"], False, where)
            self.assertIs(pod["securityContext"]["runAsNonRoot"], True, where)
            self.assertEqual(pod["securityContext"]["seccompProfile"], {"type": "RuntimeDefault"}, where)
            for key in ("hostNetwork", "hostPID", "hostIPC", "shareProcessNamespace"):
                self.assertNotIn(key, pod, where)
            for c in containers(pod):
                context = c["securityContext"]
                self.assertIs(context["runAsNonRoot"], True, where)
                self.assertIs(context["readOnlyRootFilesystem"], True, where)
                self.assertIs(context["allowPrivilegeEscalation"], False, where)
                self.assertFalse(context.get("privileged"), where)
                self.assertEqual(context["capabilities"], {"drop": ["ALL"]}, where)
                if c["name"] != "backend":
                    self.assertEqual((context["runAsUser"], context["runAsGroup"]), (65532, 65532), where)
                    self.assertIn("memory", c["resources"]["limits"], where)
                    self.assertNotIn("cpu", c["resources"]["limits"], f"{where}: throttled")
                    self.assertLessEqual({"cpu", "memory"}, c["resources"]["requests"].keys(), where)
                for mount in c.get("volumeMounts", []):
                    self.assertNotIn("subPath", mount, f"{where}: a subPath never changes")
                    if c["name"] == "license-proxy":
                        self.assertIs(mount["readOnly"], True, where)
            self.assertFalse([v for v in pod.get("volumes", []) if "hostPath" in v], where)
        for account in itertools.chain(*(all_of(rendered(c), "ServiceAccount") for c in COMBINATIONS)):
            self.assertIs(account["automountServiceAccountToken"], False)

    def test_no_role_is_asked_for(self):
        for combination in COMBINATIONS:
            kinds = {o["kind"] for o in rendered(combination)}
            self.assertFalse(kinds & {"Role", "RoleBinding", "ClusterRole", "ClusterRoleBinding", "Secret"}, combination)

    def test_secrets_by_reference(self):
        files = container(deployment(template(changes={"secrets": {"redisUrl": {"secretName": "cache"}}}))["spec"], "license-proxy")
        self.assertEqual(
            [(e["name"], e["value"]) for e in files["env"][1:]],
            [
                ("DOTMAC_LICENSE_DATABASE_URL_FILE", "/run/secrets/dotmac-license-proxy/DATABASE_URL"),
                ("DOTMAC_LICENSE_REDIS_URL_FILE", "/run/secrets/dotmac-license-proxy/REDIS_URL"),
            ],
        )
        pod = deployment(template(changes={"secrets": {"redisUrl": {"secretName": "cache"}}}))["spec"]
        (volume,) = [v["projected"] for v in pod["volumes"] if v["name"] == "license-proxy-secrets"]
        self.assertEqual([s["secret"]["name"] for s in volume["sources"]], ["licences", "cache"])
        variables = container(deployment(rendered("everything"), "backend")["spec"], "license-proxy")["env"]
        references = {e["name"]: e["valueFrom"]["secretKeyRef"] for e in variables if "valueFrom" in e}
        self.assertEqual(
            references,
            {
                "DOTMAC_LICENSE_DATABASE_URL": {"name": "licences", "key": "url"},
                "DOTMAC_LICENSE_LICENSE_DB_URL": {"name": "licences-replica", "key": "LICENSE_DB_URL"},
                "DOTMAC_LICENSE_REDIS_URL": {"name": "redis", "key": "REDIS_URL"},
                "DOTMAC_LICENSE_ADMIN_TOKEN": {"name": "licences", "key": "token"},
            },
        )

    def test_jobs_and_relay_get_what_they_need(self):
        for form in ("env", "files"):
            objects = template(files=["everything"], changes={"secrets": {"form": form}})
            for name, pod in pod_specs(objects):
                if name in ("Deployment/backend", "Pod/backend-test"):
                    continue
                text = json.dumps(pod)
                self.assertNotIn("ADMIN_TOKEN", text, name)
                self.assertIn("DOTMAC_LICENSE_DATABASE_URL", text, name)
                self.assertEqual("DOTMAC_LICENSE_REDIS_URL" in text, "migrate" not in name, name)

    def test_only_the_gate_sees_them(self):
        for combination in COMBINATIONS:
            for name, pod in pod_specs(rendered(combination)):
                for c in containers(pod):
                    if c["name"] != "license-proxy":
                        mounts = [m["name"] for m in c.get("volumeMounts", [])]
                        self.assertNotIn("license-proxy-secrets", mounts, f"{combination}: {name}")
                        self.assertFalse([e for e in c.get("env", []) if e["name"].startswith("DOTMAC_LICENSE_")])


def all_pods(combination: str):
    """Pods with their labels."""
    for o in rendered(combination):
        spec = o.get("spec", {})
        pod = o if o["kind"] == "Pod" else (spec["jobTemplate"]["spec"] if o["kind"] == "CronJob" else spec).get("template")
        if pod:
            yield f"{o['kind']}/{o['metadata']['name']}", pod


def selects(selector: dict, labels: dict) -> bool:
    if not (selector.get("matchLabels") or {}).items() <= labels.items():
        return False
    return all(e["operator"] == "In" and labels.get(e["key"]) in e["values"] for e in selector.get("matchExpressions", []))
