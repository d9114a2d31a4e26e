"""What the chart refuses, and in which words."""

import functools
import itertools
import re
import unittest

from harness import CHART, HELMS, in_parallel, refusal

BACKEND = {"backend": {"enabled": True}}


def config(**keys) -> dict:
    return {"config": keys}


# (values files, changes, what Helm must say): by the templates, a sentence for each way in which something would not work.
GUARDS = [
    (["minimal"], {"existingConfigMap": "gate"}, r"config and existingConfigMap: give one of them"),
    ([], {"secrets": {"databaseUrl": {"secretName": "x"}}}, r"config is empty: give the gate's configuration there"),
    (["minimal"], config(listen={"proxy": "0.0.0.0:1"}), r"config\.listen is set by the chart"),
    (["minimal"], config(upstream={"address": "127.0.0.1:1"}), r"config\.upstream\.address is set by the chart"),
    (["minimal"], {"configFiles": [{"configMap": "a", "key": "b", "path": "config.yaml"}]}, r"configFiles\[0\]\.path: config\.yaml is the configuration itself"),
    (["minimal"], {"ports": {"ops": 8080}}, r"two of 8080, 8080, 9090 are the same"),
    (["minimal", "loopback"], {"upstream": {"port": 8080}}, r"two of 8080, 9464, 9090, 8080 are the same"),
    # Ways around the gate.
    (["minimal", "loopback"], {"backend": {"ports": [{"containerPort": 8123}]}}, r"backend\.ports\[0\]: 8123 is .* not to be reached by anybody else"),
    (["minimal"], {"backend": {"ports": [{"containerPort": 9100}, {"containerPort": 8080}]}}, r"backend\.ports\[1\]: 8080 is"),
    *[
        (["minimal"], {"backend": {"args": args}}, r"makes it listen on every address of the pod, which is a way around the gate: let it listen on the Unix socket /run/app/app\.sock")
        for args in (
            ["uvicorn", "--host", "0.0.0.0"],
            ["gunicorn", "--bind=0.0.0.0:8000"],
            ["gunicorn", "-b", ":8000"],
            ["gunicorn", "--bind", "[::]:8000"],
            ["uvicorn", "--host=::"],
            ["sh", "-c", "exec uvicorn app:app --host 0.0.0.0 --port 80"],
        )
    ],
    (["minimal"], {"backend": {"command": ["flask", "run", "-h", "0.0.0.0"]}}, r"way around the gate"),
    (["minimal"], {"backend": {"env": [{"name": "HOST", "value": "0.0.0.0"}]}}, r"way around the gate"),
    (["minimal", "loopback"], {"backend": {"args": ["--host", "0.0.0.0"]}}, r"let it listen on 127\.0\.0\.1:8123"),
    (["minimal", "loopback"], {"networkPolicy": {"extraIngress": [{"ports": [{"port": 8123}]}]}}, r"networkPolicy\.extraIngress\[0\]: 8123 is the backend's port"),
    (["minimal"], {"networkPolicy": {"extraIngress": [{"from": []}]}}, r"networkPolicy\.extraIngress\[0\] has no ports: it would open every port"),
    # Paths that the kubelet could not ask for.
    (["minimal"], {"backend": {"healthPath": "/api/v1/crm/health"}}, r"asks for /api/v1/crm/health through the gate and names no tenant, but the routes say \\?\"a feature"),
    (["minimal"], {"backend": {"healthPath": "/up"}} | config(routes={"unmatched": "deny"}), r"the routes say \\?\"deny"),
    # Nobody's pods.
    (["minimal"], {"backend": {"enabled": False}}, r"workload\.selector is empty and backend\.enabled is false: .*: helmTest, networkPolicy, podDisruptionBudget, service"),
    (["minimal", "own-deployment"], {"autoscaling": {"enabled": True}}, r"autoscaling scales this chart's own Deployment: it needs backend\.enabled"),
    (["minimal"], {"autoscaling": {"enabled": True, "minReplicas": 11}}, r"autoscaling\.minReplicas is 11, more than maxReplicas, 10"),
    (["minimal"], {"autoscaling": {"enabled": True}}, r"set backend\.resources\.requests\.cpu"),
    (["minimal"], {"service": {"enabled": False}}, r"helmTest asks through the Service"),
    # Requests in flight.
    (["minimal", "plain"], {"shutdown": {"preStopSeconds": 20}}, r"shutdown\.preStopSeconds is 20, but the gate may go on for 20 s after SIGTERM"),
    # Stores.
    (["minimal"], {"secrets": {"databaseUrl": {"secretName": ""}}}, r"migration\.enabled needs the primary: name its Secret"),
    *[
        (["minimal", "file"], {job: {"enabled": True}}, rf"{job}\.enabled: config\.licenses\.source is a file, there is no database")
        for job in ("migration", "renew", "prune")
    ],
    (["minimal"], {"secrets": {"databaseUrl": {"secretName": ""}}, "migration": {"enabled": False}, "renew": {"enabled": True}}, r"renew\.enabled needs the primary"),
    (["minimal"], {"relay": {"enabled": True}, "secrets": {"redisUrl": {"secretName": "r"}}}, r"relay\.enabled, but config\.licenses\.change_feed is listen: nobody would hear the relay"),
    (["minimal"], {"relay": {"enabled": True}} | config(licenses={"change_feed": "redis"}), r"relay\.enabled needs Redis"),
    (["minimal"], config(licenses={"change_feed": "redis"}), r"change_feed is redis, but no relay would tell of changes"),
]

# The schema's; the two Helms say it in words of their own.
SCHEMA = [
    ({"backend": {"replica": 3}}, r"(?i)additional propert.*replica"),
    ({"nothing": 1}, r"(?i)additional propert.*nothing"),
    ({"networkPolicy": {"egress": {"postgres": {"ports": 1}}}}, r"(?i)additional propert.*ports"),
    ({"secrets": {"databaseUrl": {"value": "postgresql://u:p@db/x"}}}, r"(?i)additional propert.*value"),
    ({"secrets": {"databaseUrl": "postgresql://u:p@db/x"}}, r"databaseUrl"),
    ({"sidecar": {"extraEnv": [{"name": "DATABASE_URL", "value": "postgresql://u:p@db/x"}]}}, r"extraEnv"),
    ({"sidecar": {"extraEnv": [{"name": "DOTMAC_LICENSE_ADMIN_TOKEN", "value": "geheim"}]}}, r"extraEnv"),
    ({"secrets": {"form": "vault"}}, r"form"),
    ({"sidecar": {"native": True}}, r"native"),
    ({"upstream": {"socketPath": "app.sock"}}, r"socketPath"),
    ({"upstream": {"socketPath": "/app.sock"}}, r"socketPath"),
    ({"ports": {"proxy": 80}}, r"proxy"),
    ({"ports": {"admin": 80}}, r"admin"),
    ({"image": {"digest": "latest"}}, r"digest"),
    ({"backend": {"image": {"repository": ""}}}, r"repository"),
    ({"backend": {"replicas": "3"}}, r"replicas"),
    ({"configFiles": [{"key": "a", "path": "b"}]}, r"configFiles"),
    ({"configFiles": [{"key": "a", "path": "../b", "secret": "c"}]}, r"path"),
    ({"podDisruptionBudget": {"minAvailable": 1, "maxUnavailable": 1}}, r"podDisruptionBudget"),
    ({"relay": {"replicas": 3}}, r"replicas"),
    ({"renew": {"schedule": "hourly"}}, r"schedule"),
    ({"prune": {"usageOlderThan": "a year"}}, r"usageOlderThan"),
    ({"monitoring": {"monitor": "Probe"}}, r"monitor"),
    ({"service": {"type": "ExternalName"}}, r"type"),
    ({"config": ["listen"]}, r"config"),
]


def one_line(text: str) -> str:
    return " ".join(text.split())


@functools.cache
def provoked(guard: int, helm: str) -> str:
    files, changes, _ = GUARDS[guard]
    return one_line(refusal(helm, files=files, changes=changes))


class Refusals(unittest.TestCase):
    maxDiff = None

    def test_guards(self):
        def provoke(case):
            guard, helm = case
            self.assertRegex(provoked(guard, helm), GUARDS[guard][2], f"Helm {helm}: {GUARDS[guard][:2]}")

        in_parallel(provoke, itertools.product(range(len(GUARDS)), HELMS))

    def test_a_native_sidecar_where_there_is_none(self):
        for helm in HELMS:
            said = refusal(helm, kubernetes="1.28.0", changes={"sidecar": {"native": "always"}})
            self.assertIn("sidecar.native is always, but Kubernetes v1.28.0 does not have native sidecars", said)

    def test_clusters_that_are_too_old(self):
        for helm in HELMS:
            self.assertRegex(refusal(helm, kubernetes="1.26.0"), r"kubeVersion: >=1\.27\.0-0")

    def test_every_guard_is_provoked(self):
        """A sentence that no test above reads may be wrong, or never said."""
        templates = (CHART / "templates").rglob("*.*")
        sentences = [s for file in templates for s in re.findall(r'fail \(?(?:printf )?"((?:[^"\\]|\\.)*)"', file.read_text())]
        self.assertGreater(len(sentences), 20)
        said = "\n".join(provoked(case, HELMS[1]) for case in range(len(GUARDS)))
        said += refusal(kubernetes="1.28.0", changes={"sidecar": {"native": "always"}})
        shipped = ("files/prometheus-rules.yaml is missing", "files/dashboard.json is missing")
        for sentence in sentences:
            if sentence.startswith(shipped):
                continue
            pattern = re.sub(r"(\\ )?%\\?[a-z]", ".*", re.escape(sentence))
            self.assertRegex(said, pattern)

    def test_schema(self):
        def provoke(case):
            (changes, wanted), helm = case
            said = refusal(helm, changes=changes)
            self.assertIn("values don't meet the specifications of the schema", said)
            self.assertRegex(one_line(said), wanted, f"Helm {helm}: {changes}")

        in_parallel(provoke, itertools.product(SCHEMA, HELMS))

    def test_what_is_near_the_refusals_is_allowed(self):
        from harness import template

        for files, changes in [
            (["minimal"], {"sidecar": {"extraEnv": [{"name": "DATABASE_URL_FILE", "value": "/vault/url"}]}}),
            (["minimal"], {"sidecar": {"extraEnv": [{"name": "DATABASE_URL", "valueFrom": {"secretKeyRef": {"name": "a", "key": "b"}}}]}}),
            (["minimal"], {"backend": {"args": ["--host", "10.0.0.0.0", "--rev", "v10.0.0.0", "app::main"]}}),
            (["minimal"], {"backend": {"args": ["--host", "0.0.0.0"], "allowWildcardBind": True}}),
            (["minimal"], {"backend": {"healthPath": "/api/v1/crmx"}}),
            (["minimal"], {"relay": {"elsewhere": True}} | config(licenses={"change_feed": "redis"})),
            (["minimal", "plain"], {"shutdown": {"preStopSeconds": 9}} | config(shutdown={"drain": "2s", "timeout": "8s"})),
            (["minimal"], {"podDisruptionBudget": {"maxUnavailable": "25%"}}),
            (["minimal"], {"ports": {"admin": 0}}),
        ]:
            template(files=files, changes=changes)


if __name__ == "__main__":
    unittest.main()
