//! The chart's pods, run for real: Helm renders them, and each container's command line, environment, files and probes are taken
//! from what it renders. Nothing is changed but addresses: loopback and free ports for the pod's own, one folder for its mounts.

use std::collections::BTreeMap;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tempfile::TempDir;
use uuid::Uuid;

use crate::harness::process::{OnOrphaned, Process, free_port, server_dir};
use crate::harness::proxy::BINARY;
use crate::harness::world::least_license;
use crate::harness::{Database, Postgres, Redis, client};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/helm/dotmac-license-proxy");
const VALUES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/helm/tests/values/real.yaml");
const LIMIT: Duration = Duration::from_secs(30);

/// A rendered release, and where it runs.
struct Release {
    objects: Vec<Value>,
    /// By name and key, as the cluster would have them before the chart is installed.
    secrets: BTreeMap<(&'static str, &'static str), String>,
    database: Database,
    _redis: Redis,
}

/// A container as it runs: what the kubelet would start.
struct Container {
    command: Vec<String>,
    envs: Vec<(String, String)>,
    /// Stands for the container's file system.
    root: PathBuf,
}

/// A pod's folder and ports on this machine.
struct Pod<'a> {
    release: &'a Release,
    spec: Value,
    dir: TempDir,
    /// What an address of the pod is here.
    addresses: Vec<(String, String)>,
}

/// What Helm makes of the values with these changes.
fn render(changes: &[&str]) -> Vec<Value> {
    let helm = format!("{ROOT}/.test-tools/bin/helm-4.3");
    assert!(Path::new(&helm).exists(), "{helm} is missing: scripts/test installs it");
    let home = server_dir();
    let mut command = Command::new(helm);
    command.args(["template", "shop", CHART, "--kube-version", "1.37.0", "--values", VALUES]);
    for change in changes {
        command.args(["--set", change]);
    }
    let output = command.env_clear().env("HOME", home.path()).output().expect("helm is started");
    let (text, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "helm: {errors}");
    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{error}\n{text}"))
}

impl Release {
    async fn new(changes: &[&str]) -> Release {
        let database = Postgres::shared().await.database().await;
        let redis = Redis::start().await;
        let secrets = BTreeMap::from([
            (("licences", "DATABASE_URL"), database.url()),
            (("owner", "DATABASE_URL"), database.url()),
            (("cache", "url"), redis.url()),
            (("licences", "ADMIN_TOKEN"), "a-token-of-32-characters-or-so-xx".to_owned()),
        ]);
        Release { objects: render(changes), secrets, database, _redis: redis }
    }

    fn object(&self, kind: &str, name: &str) -> &Value {
        let found = self.objects.iter().find(|o| o["kind"] == kind && o["metadata"]["name"] == name);
        found.unwrap_or_else(|| panic!("no {kind} {name} is rendered"))
    }

    /// The pod that an object leads to.
    fn pod(&self, kind: &str, name: &str) -> Pod<'_> {
        let object = self.object(kind, name);
        let pointer = match kind {
            "Pod" => "/spec",
            "CronJob" => "/spec/jobTemplate/spec/template/spec",
            _ => "/spec/template/spec",
        };
        let spec = object.pointer(pointer).expect("a pod").clone();
        let dir = server_dir();
        let [gate, ops, admin] = [(); 3].map(|()| free_port());
        let here = |port| format!("127.0.0.1:{port}");
        let addresses = vec![
            ("0.0.0.0:8080".to_owned(), here(gate)),
            ("0.0.0.0:9464".to_owned(), here(ops)),
            ("127.0.0.1:9090".to_owned(), here(admin)),
        ];
        let pod = Pod { release: self, spec, dir, addresses };
        pod.mount();
        pod
    }

    async fn tenant(&self, plan: &str) -> Uuid {
        least_license(&self.database, plan).await
    }
}

impl Pod<'_> {
    /// Fill the pod's volumes as the kubelet does.
    fn mount(&self) {
        for volume in self.volumes() {
            let folder = self.folder(&volume);
            std::fs::create_dir_all(&folder).expect("a fresh directory");
            if let Some(sources) = volume["projected"]["sources"].as_array() {
                self.publish(&folder, sources);
            }
        }
    }

    fn volumes(&self) -> Vec<Value> {
        self.spec["volumes"].as_array().cloned().unwrap_or_default()
    }

    fn folder(&self, volume: &Value) -> PathBuf {
        self.dir.path().join(volume["name"].as_str().expect("a name"))
    }

    /// Write the files of a projected volume into a folder of their own and swap `..data` to it, which is how a change arrives.
    fn publish(&self, folder: &Path, sources: &[Value]) {
        let version = format!("..{}", Uuid::new_v4().simple());
        std::fs::create_dir(folder.join(&version)).expect("a fresh directory");
        for source in sources {
            let (kind, from) = source.as_object().and_then(|o| o.iter().next()).expect("a source");
            let name = from["name"].as_str().expect("a name");
            for item in from["items"].as_array().expect("items") {
                let (key, path) = (item["key"].as_str().expect("a key"), item["path"].as_str().expect("a path"));
                let text = match kind.as_str() {
                    "configMap" => {
                        self.here(self.release.object("ConfigMap", name)["data"][key].as_str().expect("text"))
                    }
                    "secret" => self.secret(name, key),
                    other => panic!("{other}: no such source is known here"),
                };
                std::fs::write(folder.join(&version).join(path), text).expect("written");
                if !folder.join(path).is_symlink() {
                    symlink(Path::new("..data").join(path), folder.join(path)).expect("a link");
                }
            }
        }
        symlink(&version, folder.join("..data.new")).expect("a link");
        std::fs::rename(folder.join("..data.new"), folder.join("..data")).expect("renamed");
    }

    fn secret(&self, name: &str, key: &str) -> String {
        let found = self.release.secrets.iter().find(|((n, k), _)| (*n, *k) == (name, key));
        found.unwrap_or_else(|| panic!("there is no Secret {name} with a key {key}")).1.clone()
    }

    /// A text with the pod's addresses as they are on this machine.
    fn here(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for (there, here) in &self.addresses {
            text = text.replace(there, here);
        }
        text.replace("/run/app/app.sock", &self.dir.path().join("license-proxy-backend/app.sock").display().to_string())
    }

    /// One of its containers, init containers included, with its mounts in a root of its own.
    fn container(&self, name: &str) -> Container {
        let spec = self.spec_of(name);
        let root = self.dir.path().join(format!("root-{name}"));
        let mounts = spec["volumeMounts"].as_array().cloned().unwrap_or_default();
        for mount in &mounts {
            let at = root.join(mount["mountPath"].as_str().expect("a path").trim_start_matches('/'));
            std::fs::create_dir_all(at.parent().expect("a parent")).expect("a directory");
            symlink(self.dir.path().join(mount["name"].as_str().expect("a name")), at).expect("a link");
        }
        let words = |key: &str| {
            let list = spec[key].as_array().cloned().unwrap_or_default();
            list.into_iter().map(|word| self.here(word.as_str().expect("a text"))).collect::<Vec<_>>()
        };
        // The image's entrypoint is the program.
        let mut command = words("command");
        if command.is_empty() {
            command.push(BINARY.to_owned());
        }
        command.extend(words("args"));
        let is_mounted = |path: &str| {
            let below =
                |mount: &Value| mount["mountPath"].as_str().is_some_and(|at| path.starts_with(&format!("{at}/")));
            mounts.iter().any(below)
        };
        let envs = spec["env"].as_array().cloned().unwrap_or_default();
        let envs = envs.iter().map(|env| {
            let value = match (&env["value"], &env["valueFrom"]["secretKeyRef"]) {
                (Value::String(text), _) if is_mounted(text) => format!("{}{text}", root.display()),
                (Value::String(text), _) => text.clone(),
                (_, from) => self.secret(from["name"].as_str().expect("a name"), from["key"].as_str().expect("a key")),
            };
            (env["name"].as_str().expect("a name").to_owned(), value)
        });
        Container { command, envs: envs.collect(), root: root.clone() }
    }

    fn spec_of(&self, name: &str) -> Value {
        let mut all =
            ["initContainers", "containers"].into_iter().filter_map(|key| self.spec[key].as_array()).flatten();
        all.find(|c| c["name"] == name).cloned().unwrap_or_else(|| panic!("no container {name}"))
    }

    /// Wait until the container's probe passes, as the kubelet asks it.
    async fn passes(&self, container: &str, probe: &str, process: &mut Process) {
        let get = self.spec_of(container)[probe]["httpGet"].clone();
        let (port, path) = (&get["port"], get["path"].as_str().expect("a path"));
        let (_, address) =
            self.addresses.iter().find(|(there, _)| there.ends_with(&format!(":{port}"))).expect("a port of the pod");
        let address = address.parse().expect("an address");
        let deadline = Instant::now() + LIMIT;
        loop {
            if let Some(status) = process.exited() {
                panic!("{container} has ended: {status}\n{}", process.stderr());
            }
            if tokio::net::TcpStream::connect(address).await.is_ok()
                && client::request(address, "GET", path, &[]).await.status == 200
            {
                return;
            }
            assert!(Instant::now() < deadline, "{container}: {probe} does not pass:\n{}", process.stderr());
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    fn address(&self, there: &str) -> std::net::SocketAddr {
        let (_, here) = self.addresses.iter().find(|(address, _)| address == there).expect("an address of the pod");
        here.parse().expect("an address")
    }

    /// The status of a request to the gate.
    async fn status(&self, target: &str, tenant: Uuid) -> u16 {
        let headers = [("X-Tenant-ID", &*tenant.to_string())];
        client::request(self.address("0.0.0.0:8080"), "GET", target, &headers).await.status
    }

    /// Waits until a request is answered with this status.
    async fn becomes(&self, target: &str, tenant: Uuid, status: u16) {
        let deadline = Instant::now() + LIMIT;
        loop {
            let now = self.status(target, tenant).await;
            if now == status {
                return;
            }
            assert!(Instant::now() < deadline, "{target} is still answered with {now}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }
}

impl Container {
    fn start(&self, name: &'static str) -> Process {
        std::fs::create_dir_all(&self.root).expect("a directory");
        Process::start(name, &self.root, &self.command, &self.envs, OnOrphaned::Kill, None).show_output_on_panic()
    }

    /// Run it to its end, which must be a good one; what it printed.
    async fn succeeds(&self, name: &'static str) -> String {
        let mut process = self.start(name);
        let status = process.wait(LIMIT).await;
        assert!(status.success(), "{name}: {:?}: {status}\n{}{}", self.command, process.stdout(), process.stderr());
        process.stdout()
    }

    /// The same program on this machine for a program of the backend's image.
    fn with_program(mut self, program: String) -> Container {
        assert!(Path::new(&program).exists(), "{program} is missing: scripts/test installs it");
        self.command[0] = program;
        self
    }
}

const NAME: &str = "shop-dotmac-license-proxy";

/// Starts the Deployment's pod in the kubelet's order: the gate, and the backend once the gate has started.
async fn start_pod(pod: &Pod<'_>) -> (Process, Process) {
    let mut gate = pod.container("license-proxy").start("gate");
    pod.passes("license-proxy", "startupProbe", &mut gate).await;
    let mut backend = pod.container("backend").with_program(format!("{ROOT}/.test-tools/venv/bin/uvicorn"));
    for word in &mut backend.command {
        *word = word.replace("tests/backends", &format!("{ROOT}/tests/backends"));
    }
    backend.envs.push(("PYTHONDONTWRITEBYTECODE".to_owned(), "1".to_owned()));
    let mut backend = backend.start("backend");
    pod.passes("license-proxy", "readinessProbe", &mut gate).await;
    pod.passes("backend", "startupProbe", &mut backend).await;
    pod.passes("backend", "readinessProbe", &mut backend).await;
    (gate, backend)
}

/// 200 and 402 through the gate.
async fn it_gates(pod: &Pod<'_>) -> Uuid {
    let (starter, professional) = (pod.release.tenant("starter").await, pod.release.tenant("professional").await);
    assert_eq!(pod.status("/api/v1/crm/items", professional).await, 200);
    assert_eq!(pod.status("/api/v1/tickets/items", starter).await, 200);
    let headers = [("X-Tenant-ID", &*starter.to_string())];
    let denied = client::request(pod.address("0.0.0.0:8080"), "GET", "/api/v1/crm/items", &headers).await;
    assert_eq!((denied.status, &denied.json()["feature"]), (402, &json!("crm")));
    starter
}

/// Everything of a release, in the order in which Helm and Kubernetes would start it.
#[tokio::test]
async fn what_the_chart_renders_runs() {
    let mut release = Release::new(&[]).await;
    let migrated = release.pod("Job", &format!("{NAME}-migrate")).container("license-proxy").succeeds("migrate").await;
    assert!(migrated.contains("the schema is up to date"), "{migrated}");

    let relays = release.pod("Deployment", &format!("{NAME}-relay"));
    let mut relay = relays.container("license-proxy").start("relay");
    relays.passes("license-proxy", "startupProbe", &mut relay).await;
    relays.passes("license-proxy", "readinessProbe", &mut relay).await;

    let pod = release.pod("Deployment", NAME);
    assert_eq!(pod.spec["initContainers"][0]["restartPolicy"], "Always");
    let (mut gate, _backend) = start_pod(&pod).await;
    let starter = it_gates(&pod).await;
    let port = pod.address("127.0.0.1:9090");
    let token = "Bearer a-token-of-32-characters-or-so-xx";
    let path = format!("/admin/license/{starter}");
    let admin = client::request(port, "GET", &path, &[("Authorization", token)]).await;
    assert_eq!(admin.status, 200, "the admin token's Secret is read: {}", admin.text());

    // By way of Postgres, the relay and Redis.
    let sql =
        format!("UPDATE tenant_licenses SET features = features || '{{\"crm\": true}}' WHERE tenant_id = '{starter}'");
    release.database.execute(&sql).await;
    pod.becomes("/api/v1/crm/items", starter, 200).await;

    for job in ["renew", "prune"] {
        let printed = release.pod("CronJob", &format!("{NAME}-{job}")).container("license-proxy").succeeds("job").await;
        assert!(!printed.trim().is_empty(), "{job} says nothing");
    }
    let audit = "SELECT count(*) > 0 FROM license_audit WHERE actor = 'cronjob'";
    assert_eq!(release.database.value(audit).await.as_deref(), Some("t"), "the jobs are in the audit");

    // `helm test`, by its own script.
    let tests = release.pod("Pod", &format!("{NAME}-test"));
    let mut test = tests.container("curl");
    for (name, value) in &mut test.envs {
        match name.as_str() {
            "GATE_URL" => *value = format!("http://{}", pod.address("0.0.0.0:8080")),
            "OPS_URL" => *value = format!("http://{}", pod.address("0.0.0.0:9464")),
            _ => assert_eq!((name.as_str(), value.as_str()), ("GATED_PATH", "/api/v1/crm")),
        }
    }
    let said = test.succeeds("helm-test").await;
    assert!(said.contains("/readyz answers 200") && said.contains("/api/v1/crm answers 401"), "{said}");
    // It can fail.
    test.envs.retain(|(name, _)| name != "GATED_PATH");
    test.envs.push(("GATED_PATH".to_owned(), "/api/v1/network/items".to_owned()));
    let mut failing = test.start("helm-test-2");
    assert_eq!(failing.wait(LIMIT).await.code(), Some(1), "{}", failing.stdout());

    // An upgrade that changes the configuration alone: the ConfigMap is swapped, and no process restarts.
    let other = Uuid::new_v4();
    assert_eq!(pod.status("/api/v1/crm/items", other).await, 402);
    let folder = pod.dir.path().join("license-proxy-config");
    let (dir, addresses, spec) = (pod.dir, pod.addresses, pod.spec);
    let deployment = release.object("Deployment", NAME).clone();
    release.objects = render(&["config.enforcement.mode=shadow"]);
    assert_eq!(release.object("Deployment", NAME), &deployment, "an upgrade would restart the pods");
    let pod = Pod { release: &release, spec, dir, addresses };
    let sources = pod.volumes()[0]["projected"]["sources"].as_array().cloned().expect("sources");
    pod.publish(&folder, &sources);
    pod.becomes("/api/v1/crm/items", other, 200).await;

    gate.signal("TERM");
    assert!(gate.wait(LIMIT).await.success(), "it ends by itself");
    relay.signal("TERM");
    assert!(relay.wait(LIMIT).await.success());
}

/// The plain form, secrets as variables, and each proxy listening for itself.
#[tokio::test]
async fn the_plain_form_runs_as_well() {
    let changes =
        ["sidecar.native=never", "secrets.form=env", "relay.enabled=false", "config.licenses.change_feed=listen"];
    let release = Release::new(&changes).await;
    release.pod("Job", &format!("{NAME}-migrate")).container("license-proxy").succeeds("migrate").await;
    let pod = release.pod("Deployment", NAME);
    assert_eq!(pod.spec["containers"][0]["name"], "license-proxy");
    let (_gate, _backend) = start_pod(&pod).await;
    it_gates(&pod).await;
}
