"""How pods start, end, change and are kept; hooks and jobs."""

import copy
import unittest

import yaml

from harness import (CANARY, COMBINATIONS, all_of, config_of, container, deployment, notes, only, parent, pod_specs, rendered, template)


class Sidecar(unittest.TestCase):
    def test_native(self):
        pod = deployment(rendered("minimal"))["spec"]
        self.assertEqual([c["name"] for c in pod["initContainers"]], ["license-proxy"])
        self.assertEqual([c["name"] for c in pod["containers"]], ["backend"])
        gate = pod["initContainers"][0]
        self.assertEqual(gate["restartPolicy"], "Always")
        self.assertEqual(gate["args"], ["serve"])
        self.assertNotIn("command", gate, "the image's entrypoint is the program")
        self.assertEqual(gate["startupProbe"]["httpGet"], {"path": "/livez", "port": 9464})
        self.assertEqual(gate["readinessProbe"]["httpGet"], {"path": "/readyz", "port": 9464})
        self.assertEqual(gate["livenessProbe"]["httpGet"], {"path": "/livez", "port": 9464})

    def test_plain(self):
        pod = deployment(rendered("plain"))["spec"]
        self.assertNotIn("initContainers", pod)
        self.assertEqual([c["name"] for c in pod["containers"]], ["license-proxy", "backend"])
        gate = dict(pod["containers"][0])
        self.assertNotIn("restartPolicy", gate)
        native = dict(deployment(rendered("minimal"))["spec"]["initContainers"][0])
        native.pop("restartPolicy")
        self.assertEqual(gate, native)

    def test_in_somebody_elses_deployment_it_is_the_same(self):
        for native in ("auto", "never"):
            sidecar = {"sidecar": {"native": native}}
            theirs = deployment(template(files=(), changes={"dotmac-license-proxy": sidecar}, chart=parent()), "shop")
            ours = deployment(template(changes=sidecar | {"secrets": {"redisUrl": {"secretName": "licences"}}}))
            self.assertEqual(container(theirs["spec"], "license-proxy"), container(ours["spec"], "license-proxy"))
            for key in ("terminationGracePeriodSeconds", "securityContext"):
                self.assertEqual(theirs["spec"][key], ours["spec"][key])
            self.assertEqual(container(theirs["spec"], "shop")["lifecycle"], container(ours["spec"], "backend")["lifecycle"])
            # The chart's own volumes, without the backend's /tmp.
            self.assertEqual(theirs["spec"]["volumes"], [v for v in ours["spec"]["volumes"] if v["name"] != "tmp"])

    def test_a_parent_chart_leads_service_and_policy_to_its_own_pods(self):
        objects = template(files=(), chart=parent())
        labels = deployment(objects, "shop")["metadata"]["labels"]
        for kind, name in (("Service", "shop-dotmac-license-proxy"), ("Service", "shop-dotmac-license-proxy-ops")):
            self.assertEqual(only(objects, kind, name)["spec"]["selector"], labels)
        for kind in ("NetworkPolicy", "PodDisruptionBudget"):
            selector = only(objects, kind, "shop-dotmac-license-proxy")["spec"].get
            self.assertEqual((selector("podSelector") or selector("selector"))["matchLabels"], labels)
        self.assertEqual(len(all_of(objects, "Deployment")), 1)

    def test_two_of_them_under_aliases_do_not_meet(self):
        first, second = (template(changes={"nameOverride": name}) for name in ("gate-a", "gate-b"))
        names = [{(o["kind"], o["metadata"]["name"]) for o in objects} for objects in (first, second)]
        self.assertFalse(names[0] & names[1])

    def test_long_names_stay_within_what_kubernetes_takes(self):
        objects = template(files=["everything"], changes={"fullnameOverride": "a" * 60})
        for o in objects:
            self.assertLessEqual(len(o["metadata"]["name"]), 52 if o["kind"] == "CronJob" else 63, o["kind"])


class Ending(unittest.TestCase):
    """The backend outlives what the gate still sends to it, and the pod's grace is enough for both."""

    GATE = 20

    def of(self, objects: list[dict], name="shop-dotmac-license-proxy") -> tuple[int, int]:
        pod = deployment(objects, name)["spec"]
        wait = container(pod, "backend")["lifecycle"]["preStop"]["sleep"]["seconds"]
        return wait, pod["terminationGracePeriodSeconds"]

    def test_native_the_gate_goes_last(self):
        wait, grace = self.of(rendered("minimal"))
        self.assertGreaterEqual(wait, 5)
        self.assertGreaterEqual(grace, wait + 15 + self.GATE)
        self.assertNotIn("lifecycle", container(deployment(rendered("minimal"))["spec"], "license-proxy"))

    def test_plain_the_backend_waits_for_the_gate(self):
        wait, grace = self.of(rendered("plain"))
        self.assertGreater(wait, self.GATE)
        self.assertGreaterEqual(grace, wait + 15)

    def test_they_follow_the_configuration(self):
        for timeout, seconds in (("1m", 60), ("30s", 30), ("12500ms", 13)):
            changes = {"config": {"shutdown": {"timeout": timeout}}}
            wait, grace = self.of(template(files=["minimal", "plain"], changes=changes))
            self.assertEqual((wait, grace), (seconds + 1, seconds + 1 + 15 + 5))
            wait, grace = self.of(template(changes=changes))
            self.assertEqual((wait, grace), (10, 10 + 15 + seconds + 5))
        changes = {"shutdown": {"preStopSeconds": 3, "backendSeconds": 40}}
        self.assertEqual(self.of(template(changes=changes)), (3, 3 + 40 + 20 + 5))

    def test_before_1_30_the_image_sleeps(self):
        for kubernetes, files, seconds in (("1.29.0", ["minimal"], "10"), ("1.28.0", ["minimal"], "21")):
            pod = deployment(template(kubernetes=kubernetes, files=files))["spec"]
            self.assertEqual(container(pod, "backend")["lifecycle"], {"preStop": {"exec": {"command": ["sleep", seconds]}}})


class Probes(unittest.TestCase):
    def test_a_backend_on_a_socket_is_asked_through_the_gate(self):
        backend = container(deployment(rendered("everything"), "backend")["spec"], "backend")
        for probe in ("startupProbe", "readinessProbe"):
            self.assertEqual(backend[probe]["httpGet"], {"path": "/healthz", "port": 8080})
        self.assertEqual(backend["livenessProbe"]["exec"], {"command": ["python", "-m", "app.alive"]})

    def test_without_a_path_there_are_none(self):
        backend = container(deployment(rendered("minimal"))["spec"], "backend")
        self.assertFalse([key for key in backend if key.endswith("Probe")])

    def test_ones_own_beat_them(self):
        own = {"exec": {"command": ["true"]}}
        changes = {"backend": {"healthPath": "/up", "startupProbe": own, "readinessProbe": own}}
        backend = container(deployment(template(changes=changes))["spec"], "backend")
        self.assertEqual((backend["startupProbe"], backend["readinessProbe"]), (own, own))


class Changing(unittest.TestCase):
    """What the gate reads again restarts nothing; what it does not rolls the pods."""

    def both(self, changes) -> tuple[list[dict], list[dict]]:
        return template(), template(changes=changes)

    def test_rules_plans_and_enforcement_restart_nothing(self):
        for changes in (
            {"routes": {"unmatched": "deny"}},
            {"plans": []},
            {"enforcement": {"mode": "off"}},
            {"licenses": {"on_failure": "deny", "grace": "1h"}},
            {"upstream": {"response_timeout": "5s"}},
            {"deny": {"upgrade_url": "/buy"}},
            {"log": {"raw_target": True}},
        ):
            before, after = self.both({"config": changes})
            self.assertNotEqual(config_of(before), config_of(after), changes)
            self.assertEqual(all_of(before, "Deployment"), all_of(after, "Deployment"), changes)

    def test_what_waits_for_a_restart_gets_one(self):
        for changes in (
            {"config": {"licenses": {"ttl": "1m"}}},
            {"config": {"usage": {"flush_interval": "1s"}}},
            {"config": {"shutdown": {"drain": "6s"}}},
            {"config": {"log": {"level": "debug"}}},
            {"config": {"upstream": {"pool_size": 8}}},
            {"sidecar": {"workers": 3}},
            {"ports": {"admin": 9091}},
        ):
            before, after = ([d["spec"]["template"]["metadata"] for d in all_of(o, "Deployment")] for o in self.both(changes))
            self.assertNotEqual(before, after, changes)

    def test_canary_steps_change_the_configuration_alone(self):
        steps = [rendered(f"canary-{percent}") for percent in (5, 25, 50, 100)]
        for percent, objects in zip((5, 25, 50, 100), steps):
            self.assertIn(f"percent: {percent}\n", config_of(objects))
            self.assertIn("mode: enforce\n", config_of(objects))
        self.assertEqual(len({config_of(objects).replace(f"percent: {p}\n", "") for p, objects in zip((5, 25, 50, 100), steps)}), 1, "the salt stays")
        for objects in steps[1:]:
            self.assertEqual(all_of(objects, "Deployment"), all_of(steps[0], "Deployment"))
        # Who is named stays named.
        named = template(files=["minimal", CANARY / "values-5.yaml"], changes={"config": {"enforcement": {"rollout": {"include": ["6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11"]}}}})
        self.assertIn("6f1c1c5e", config_of(named))

    def test_the_configuration_is_mounted_as_a_folder(self):
        for name, pod in pod_specs(rendered("everything")):
            for c in (c for c in pod.get("initContainers", []) + pod["containers"] if c["name"] == "license-proxy"):
                if "migrate" in name:
                    continue
                (mount,) = [m for m in c["volumeMounts"] if m["name"] == "license-proxy-config"]
                self.assertEqual(mount["mountPath"], "/etc/dotmac-license-proxy", name)
                self.assertIn({"name": "DOTMAC_LICENSE_CONFIG", "value": "/etc/dotmac-license-proxy/config.yaml"}, c["env"])
                (volume,) = [v["projected"] for v in pod["volumes"] if v["name"] == "license-proxy-config"]
                files = [(s.get("configMap") or s["secret"], ) for s in volume["sources"]]
                paths = {item["path"]: source["name"] for (source,) in files for item in source["items"]}
                self.assertEqual(paths, {"config.yaml": "backend-config", "jwks.json": "keys"}, name)

    def test_a_secret_beside_the_configuration(self):
        changes = {"configFiles": [{"secret": "hmac", "key": "jwks", "path": "jwks.json"}]}
        (volume,) = [v for v in deployment(template(changes=changes))["spec"]["volumes"] if v["name"] == "license-proxy-config"]
        self.assertEqual(volume["projected"]["sources"][1], {"secret": {"name": "hmac", "items": [{"key": "jwks", "path": "jwks.json"}]}})

    def test_a_configmap_of_ones_own(self):
        objects = rendered("existing")
        self.assertFalse(all_of(objects, "ConfigMap"))
        (volume,) = [v for v in deployment(objects)["spec"]["volumes"] if v["name"] == "license-proxy-config"]
        self.assertEqual(volume["projected"]["sources"][0]["configMap"]["name"], "gate")


class Fleet(unittest.TestCase):
    def test_rolling_takes_nobody_away(self):
        spec = only(rendered("minimal"), "Deployment")["spec"]
        self.assertEqual(spec["strategy"]["rollingUpdate"]["maxUnavailable"], 0)
        self.assertEqual(spec["replicas"], 2)

    def test_budget(self):
        spec = only(rendered("minimal"), "PodDisruptionBudget")["spec"]
        self.assertEqual((spec["maxUnavailable"], spec["unhealthyPodEvictionPolicy"]), (1, "AlwaysAllow"))
        spec = only(rendered("everything"), "PodDisruptionBudget")["spec"]
        self.assertEqual(spec["minAvailable"], "50%")
        self.assertNotIn("maxUnavailable", spec)
        self.assertEqual(only(template(changes={"podDisruptionBudget": {"minAvailable": 0}}), "PodDisruptionBudget")["spec"]["minAvailable"], 0)

    def test_autoscaling_looks_at_the_backend_alone(self):
        objects = rendered("everything")
        spec = only(objects, "HorizontalPodAutoscaler")["spec"]
        self.assertEqual(spec["scaleTargetRef"], {"apiVersion": "apps/v1", "kind": "Deployment", "name": "backend"})
        self.assertEqual((spec["minReplicas"], spec["maxReplicas"]), (3, 12))
        self.assertEqual(spec["metrics"][0]["containerResource"]["container"], "backend")
        self.assertNotIn("replicas", only(objects, "Deployment", "backend")["spec"], "the autoscaler's number would be undone by each upgrade")

    def test_pods_are_spread(self):
        spec = deployment(rendered("minimal"))
        constraints = spec["spec"]["topologySpreadConstraints"]
        self.assertEqual([c["topologyKey"] for c in constraints], ["topology.kubernetes.io/zone", "kubernetes.io/hostname"])
        for constraint in constraints:
            self.assertLessEqual(constraint["labelSelector"]["matchLabels"].items(), spec["metadata"]["labels"].items())
        self.assertNotIn("topologySpreadConstraints", deployment(template(changes={"pod": {"topologySpread": False}}))["spec"])

    def test_selectors_select(self):
        for combination in COMBINATIONS:
            for d in all_of(rendered(combination), "Deployment"):
                self.assertLessEqual(d["spec"]["selector"]["matchLabels"].items(), d["spec"]["template"]["metadata"]["labels"].items())
                self.assertNotIn("helm.sh/chart", d["spec"]["selector"]["matchLabels"])


class Jobs(unittest.TestCase):
    def test_the_migration_comes_first_and_needs_nothing_that_is_not_there(self):
        for combination in ("minimal", "everything"):
            objects = rendered(combination)
            (job,) = all_of(objects, "Job")
            hooks = [o for o in objects if "pre-install" in o["metadata"].get("annotations", {}).get("helm.sh/hook", "")]
            for o in hooks:
                self.assertEqual(o["metadata"]["annotations"]["helm.sh/hook"], "pre-install,pre-upgrade")
                self.assertEqual(o["metadata"]["annotations"]["helm.sh/hook-delete-policy"], "before-hook-creation,hook-succeeded")
            weight = {o["kind"]: int(o["metadata"]["annotations"]["helm.sh/hook-weight"]) for o in hooks}
            self.assertLess(weight["ServiceAccount"], weight["Job"])
            pod = job["spec"]["template"]["spec"]
            self.assertIn(pod["serviceAccountName"], [o["metadata"]["name"] for o in hooks if o["kind"] == "ServiceAccount"])
            for volume in pod.get("volumes", []):
                for source in volume["projected"]["sources"]:
                    self.assertEqual(list(source), ["secret"], "a ConfigMap of the release is not there yet")
            self.assertEqual(pod["containers"][0]["args"], ["migrate"])
            self.assertEqual((job["spec"]["backoffLimit"], job["spec"]["activeDeadlineSeconds"]), (3, 600))

    def test_the_migration_may_have_a_role_of_its_own(self):
        (job,) = all_of(rendered("everything"), "Job")
        (variable,) = job["spec"]["template"]["spec"]["containers"][0]["env"]
        self.assertEqual(variable["valueFrom"]["secretKeyRef"], {"name": "licences-owner", "key": "DATABASE_URL"})

    def test_an_account_that_is_there_is_used(self):
        objects = template(changes={"serviceAccount": {"create": False, "name": "platform"}})
        self.assertFalse(all_of(objects, "ServiceAccount"))
        names = {pod.get("serviceAccountName") for name, pod in pod_specs(objects) if "-test" not in name}
        self.assertEqual(names, {"platform"})

    def test_cron_jobs(self):
        objects = rendered("everything")
        args = {}
        for job in all_of(objects, "CronJob"):
            self.assertEqual(job["spec"]["concurrencyPolicy"], "Forbid")
            self.assertEqual(job["spec"]["timeZone"], "Etc/UTC")
            self.assertGreater(job["spec"]["jobTemplate"]["spec"]["activeDeadlineSeconds"], 0)
            args[job["metadata"]["name"]] = job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"][0]["args"]
        self.assertEqual(args["backend-renew"][:6], ["license", "renew", "--within", "24h", "--by", "30d"])
        self.assertEqual(args["backend-prune"][:5], ["prune", "--usage-older-than", "400d", "--denials-older-than", "90d"])

    def test_meshes_are_kept_out(self):
        for kind in ("Job", "CronJob"):
            for o in all_of(rendered("everything"), kind):
                spec = o["spec"] if kind == "Job" else o["spec"]["jobTemplate"]["spec"]
                self.assertEqual(spec["template"]["metadata"]["annotations"], {"sidecar.istio.io/inject": "false"})

    def test_the_relay(self):
        relay = deployment(rendered("everything"), "backend-relay")["spec"]
        gate = container(relay, "license-proxy")
        self.assertEqual(gate["args"], ["relay"])
        self.assertEqual(gate["readinessProbe"]["httpGet"], {"path": "/readyz", "port": 9464})
        self.assertEqual([p["containerPort"] for p in gate["ports"]], [9464])
        self.assertNotIn("license-proxy-backend", [v["name"] for v in relay["volumes"]])
        self.assertEqual([d["metadata"]["name"] for d in all_of(rendered("relay"), "Deployment")], ["shop-dotmac-license-proxy-relay"])


class HelmTest(unittest.TestCase):
    def path(self, changes=None, files=("minimal",)) -> str:
        pod = only(template(files=files, changes=changes), "Pod")["spec"]
        return {e["name"]: e["value"] for e in pod["containers"][0]["env"]}["GATED_PATH"]

    def test_a_gated_path_while_all_are_enforced(self):
        self.assertEqual(self.path(), "/api/v1/crm")
        self.assertEqual(self.path(files=["minimal", CANARY / "values-100.yaml"]), "/api/v1/crm")
        self.assertEqual(self.path({"helmTest": {"gatedPath": "/x"}}), "/x")
        braces = {"config": {"routes": {"rules": [{"prefix": "/c/{id}/t", "feature": "t"}]}}}
        self.assertEqual(self.path(braces), "/c/x/t")

    def test_none_otherwise(self):
        for keys in (
            {"enforcement": {"mode": "shadow"}},
            {"enforcement": {"rollout": {"percent": 50}}},
            {"tenant": {"missing": "allow"}},
            {"tenant": {"sources": [{"fixed": "6f1c1c5e-8f3e-4a58-9a3c-0a4e1f0f7b11"}]}},
            {"routes": {"rules": [{"prefix": "/a", "access": "always"}]}},
            {"routes": {"rules": [{"prefix": "/a", "feature": "a", "mode": "shadow"}]}},
            {"deny": {"status": {"tenant_missing": 403}}},
        ):
            self.assertEqual(self.path({"config": keys}), "", keys)

    def test_it_asks_the_services_of_the_release(self):
        objects = rendered("everything")
        pod = only(objects, "Pod")["spec"]
        urls = {e["name"]: e["value"] for e in pod["containers"][0]["env"]}
        services = {o["metadata"]["name"]: o["spec"]["ports"][0]["port"] for o in all_of(objects, "Service")}
        self.assertEqual(urls["GATE_URL"], f"http://backend:{services['backend']}")
        self.assertEqual(urls["OPS_URL"], f"http://backend-ops:{services['backend-ops']}")
        self.assertRegex(pod["containers"][0]["image"], r":\d+\.\d+\.\d+$")


class Notes(unittest.TestCase):
    """Each unsafe value is named to whoever installs it, and nothing else is."""

    SAFE = {
        "config": {"licenses": {"on_failure": "deny"}},
        "secrets": {"redisUrl": {"secretName": "r"}, "adminToken": {"secretName": "a"}},
        "renew": {"enabled": True},
    }

    def warnings(self, changes=None, files=("minimal",), safe=True, version="4.3") -> list[str]:
        merged = copy.deepcopy(self.SAFE) if safe else {}
        for key, value in (changes or {}).items():
            merged[key] = {**merged.get(key, {}), **value}
        return [line for line in notes(version, files, merged).splitlines() if line.startswith("WARNING: ")]

    def test_nothing_to_say(self):
        self.assertEqual(self.warnings(), [])

    def test_warnings(self):
        for changes, files, wanted in [
            ({"config": {"enforcement": {"mode": "off"}}}, [], "enforcement.mode is off"),
            ({"config": {"enforcement": {"mode": "shadow"}}}, [], "enforcement.mode is shadow"),
            ({}, [CANARY / "values-25.yaml"], "rollout.percent is 25"),
            ({"config": {"licenses": {"on_failure": "allow"}}}, [], "on_failure is allow"),
            ({"config": {"trusted_proxies": [], "tenant": {"sources": [{"jwt": {"keys": "k"}}]}}}, [], "trusted_proxies is empty"),
            ({"config": {"trusted_proxies": ["0.0.0.0/0"]}}, [], "trusted_proxies has 0.0.0.0/0"),
            ({"backend": {"args": ["--host", "0.0.0.0"], "allowWildcardBind": True}}, [], '"0.0.0.0" makes it listen on every address'),
            ({"backend": {"replicas": 1}}, [], "replicas is 1: the PodDisruptionBudget protects nothing"),
            ({"backend": {"replicas": 1}, "podDisruptionBudget": {"minAvailable": 1}}, [], "can't be drained"),
            ({"secrets": {"redisUrl": {"secretName": ""}}}, [], "no Secret is named for Redis"),
            ({"secrets": {"adminToken": {"secretName": ""}}}, [], "no Secret is named for the admin token"),
            ({"renew": {"enabled": False}}, [], "renew.enabled is false"),
            ({"networkPolicy": {"enabled": False}}, [], "networkPolicy.enabled is false"),
        ]:
            said = [w for w in self.warnings(changes, ["minimal", *files]) if "on_failure" not in w or "on_failure" in wanted]
            self.assertEqual(len(said), 1, f"{changes}: {said}")
            self.assertIn(wanted, said[0])
        none = {"secrets": {"databaseUrl": {"secretName": ""}}, "migration": {"enabled": False}, "renew": {"enabled": False}}
        said = "\n".join(self.warnings(none))
        self.assertIn("no Secret is named for Postgres", said)
        self.assertIn("migration.enabled is false", said)

    def test_both_helms_say_the_same(self):
        for files in (["minimal"], ["everything"], ["minimal", "existing"], ["relay"], ["minimal", "own-deployment"]):
            first, second = (notes(version, files) for version in ("3.17", "4.3"))
            self.assertEqual(first.strip(), second.strip(), files)

    def test_what_a_configmap_of_ones_own_has_to_say(self):
        said = notes(files=["minimal", "existing"])
        lines = [line for line in said.splitlines() if line.startswith(("  listen:", "  upstream:"))]
        keys = yaml.safe_load("\n".join(lines))
        self.assertEqual(keys["listen"], {"proxy": "0.0.0.0:8080", "ops": "0.0.0.0:9464", "admin": "127.0.0.1:9090"})
        self.assertEqual(keys["upstream"], {"address": "unix:/run/app/app.sock"})
