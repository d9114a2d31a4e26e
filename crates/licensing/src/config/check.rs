//! What takes more than one value to see: contradictions, and settings that are allowed but hardly meant.

use std::collections::{HashMap, HashSet};

use super::names::{FeatureName, HeaderName, Method};
use super::node::{Node, Step, written};
use super::policy::UpgradeAllow;
use super::problem::Collector;
use super::routes::Scope;
use super::tenant::{Jwt, TenantSource, TokenPlace};
use super::{Config, LicenseSource};
use crate::routes::{Matched, Place, Route, Routes};

/// A path into the configuration, of keys and positions.
macro_rules! at {
    ($($step:expr),*) => { [$(Step::from($step)),*] };
}

mod metering;
mod process;

/// Report all that is wrong or doubtful in `config`, which was read from `tree`.
pub(super) fn check(config: &Config, tree: &Node, problems: &mut Collector<'_>) {
    let mut checker = Checker { config, tree, problems };
    checker.sockets();
    checker.spans();
    checker.numbers();
    checker.proxies();
    checker.tenant();
    checker.licenses();
    checker.routes();
    checker.gated_lists();
    checker.plans();
    checker.meters();
    checker.limits();
    checker.usage();
    checker.enforcement();
    checker.upgrade();
    checker.api();
    checker.cors();
    checker.deny();
}

struct Checker<'a, 'c> {
    config: &'a Config,
    tree: &'a Node,
    problems: &'a mut Collector<'c>,
}

impl Checker<'_, '_> {
    fn error(&mut self, path: &[Step<'_>], message: impl Into<String>) {
        self.problems.error(self.tree.place_of(path), written(path), message);
    }

    fn warning(&mut self, path: &[Step<'_>], message: impl Into<String>) {
        self.problems.warning(self.tree.place_of(path), written(path), message);
    }

    /// The line of the value at `path`, for messages that name a second place.
    fn line(&self, path: &[Step<'_>]) -> u32 {
        self.tree.place_of(path).line
    }

    fn proxies(&mut self) {
        for (i, network) in self.config.trusted_proxies.iter().enumerate() {
            let net = network.get();
            if net.prefix_len() == 0 {
                let message = "everyone is trusted: any client can name any tenant";
                self.warning(&at!["trusted_proxies", i], message);
            } else if net.addr() != net.network() {
                let message = format!("{net} means {}, all of it", net.trunc());
                self.warning(&at!["trusted_proxies", i], message);
            }
        }
    }

    fn tenant(&mut self) {
        let sources = &self.config.tenant.sources;
        if sources.is_empty() {
            self.error(&at!["tenant", "sources"], "at least one source is needed, such as `- header: X-Tenant-ID`");
        }
        for (i, source) in sources.iter().enumerate() {
            let path = at!["tenant", "sources", i];
            if let Some(earlier) = sources[..i].iter().position(|other| other == source) {
                let message =
                    format!("is the same as source {earlier} (line {})", self.line(&at!["tenant", "sources", earlier]));
                self.error(&path, message);
            }
            match source {
                TenantSource::Header(name) => {
                    self.believed_header(&at!["tenant", "sources", i, "header"], name);
                }
                TenantSource::Jwt(jwt) => self.token(i, jwt),
                TenantSource::Host(_) if self.config.trusted_proxies.is_empty() => {
                    let message = "`trusted_proxies` is empty, so that any client names the tenant by the host that it asks: \
                                   that is for public sites, whose backend checks who asks";
                    self.warning(&at!["tenant", "sources", i, "host"], message);
                }
                TenantSource::Fixed(_) if sources.len() > 1 => {
                    self.error(
                        &path,
                        "`fixed` names one tenant for every request: no other source may stand beside it",
                    );
                }
                _ => {}
            }
        }
    }

    fn token(&mut self, i: usize, jwt: &Jwt) {
        if jwt.keys.as_os_str().is_empty() {
            self.error(&at!["tenant", "sources", i, "jwt", "keys"], "expected the path of a file");
        }
        if jwt.claim.is_empty() {
            self.error(&at!["tenant", "sources", i, "jwt", "claim"], "expected the name of a claim");
        }
        if jwt.from.is_empty() {
            let message = "expected at least one of authorization, websocket_protocol and a cookie";
            self.error(&at!["tenant", "sources", i, "jwt", "from"], message);
        }
        for (j, place) in jwt.from.iter().enumerate() {
            // A cookie's name is a token, and so is a header's (RFC 6265 section 4.1.1).
            if let TokenPlace::Cookie(name) = place
                && name.parse::<HeaderName>().is_err()
            {
                let message = format!("{name:?} is no name of a cookie: expected one such as access_token");
                self.error(&at!["tenant", "sources", i, "jwt", "from", j, "cookie"], message);
            }
        }
    }

    /// A header that says who someone is.
    fn believed_header(&mut self, path: &[Step<'_>], name: &HeaderName) {
        if self.config.trusted_proxies.is_empty() {
            let message =
                format!("any client can send {name}: name in `trusted_proxies` those from whom it is believed");
            self.error(path, message);
        }
        let name_text = name.as_str();
        let taken = ["x-license-", "x-forwarded-"].iter().any(|prefix| name_text.starts_with(prefix));
        if taken || name_text == "x-request-id" || is_framing(name_text) {
            self.error(path, format!("{name} has a meaning of its own: expected a header such as X-Tenant-ID"));
        }
    }

    fn licenses(&mut self) {
        if let LicenseSource::File(file) = &self.config.licenses.source
            && file.path.as_os_str().is_empty()
        {
            self.error(&at!["licenses", "source", "file", "path"], "expected the path of a file");
        }
    }

    fn routes(&mut self) {
        let rules = &self.config.routes.rules;
        if rules.is_empty() {
            self.warning(&at!["routes"], "there are no rules: nothing is gated");
        }
        for (place, message, other) in self.config.routes.problems() {
            let path = match place {
                Place::Rule(index) => at!["routes", "rules", index],
                Place::Alias(index) => at!["routes", "path_aliases", index],
            };
            let message = match other {
                Some(other) => {
                    let line = self.line(&at!["routes", "rules", other]);
                    format!("{message}: see routes.rules[{other}] in line {line}")
                }
                None => message,
            };
            self.error(&path, message);
        }
        let sold: HashSet<&FeatureName> = self.config.plans.iter().flat_map(|plan| &plan.features).collect();
        if sold.is_empty() {
            return;
        }
        for (i, rule) in rules.iter().enumerate() {
            if let Some(feature) = rule.feature().filter(|feature| !sold.contains(feature)) {
                let message = format!("no plan grants `{feature}`: only licences that list it by themselves pass");
                self.warning(&at!["routes", "rules", i, "feature"], message);
            }
        }
    }

    fn plans(&mut self) {
        let plans = &self.config.plans;
        if plans.is_empty() {
            self.warning(&at!["plans"], "there are no plans: denials can't say which one has the feature");
        }
        let mut names = HashMap::new();
        for (i, plan) in plans.iter().enumerate() {
            if let Some(earlier) = names.insert(&plan.name, i) {
                let first = self.line(&at!["plans", earlier, "name"]);
                let message = format!("the plan `{}` stands in line {first} already", plan.name);
                self.error(&at!["plans", i, "name"], message);
            }
            let mut features = HashSet::new();
            for (j, feature) in plan.features.iter().enumerate() {
                if !features.insert(feature) {
                    self.warning(&at!["plans", i, "features", j], format!("`{feature}` is listed twice"));
                }
            }
        }
    }

    fn enforcement(&mut self) {
        let rollout = &self.config.enforcement.rollout;
        if !(0.0..=100.0).contains(&rollout.percent) {
            self.error(&at!["enforcement", "rollout", "percent"], "must be from 0 to 100");
        }
        for (i, tenant) in rollout.exclude.iter().enumerate() {
            if rollout.include.contains(tenant) {
                let message = format!("{tenant} is in `include` as well: it stays excluded");
                self.warning(&at!["enforcement", "rollout", "exclude", i], message);
            }
        }
    }

    fn upgrade(&mut self) {
        let Some(upgrade) = &self.config.upgrade else { return };
        let path = at!["upgrade", "allow"];
        match &upgrade.allow {
            UpgradeAllow { header: Some(name), values: Some(values), jwt: None } if !values.is_empty() => {
                self.believed_header(&at!["upgrade", "allow", "header"], name);
                if self.config.tenant.sources.contains(&TenantSource::Header(name.clone())) {
                    let message = format!("{name} names the tenant: expected a header that names a role");
                    self.error(&at!["upgrade", "allow", "header"], message);
                }
            }
            UpgradeAllow { header: None, values: None, jwt: Some(jwt) } if !jwt.values.is_empty() => {
                if self.config.tenant.tokens().next().is_none() {
                    let message = "the role is a claim of the tenant's token, and no source in `tenant` is a token";
                    self.error(&at!["upgrade", "allow", "jwt"], message);
                }
            }
            _ => self.error(&path, "expected `header` with `values`, or `jwt` with `claim` and `values`"),
        }
    }

    /// Gated rules for the entries of a list that gate the list as well, since some routers take nothing for a parameter.
    fn gated_lists(&mut self) {
        // What is wrong with them is told already.
        let Ok(routes) = self.config.routes.routes() else { return };
        for (i, rule) in self.config.routes.rules.iter().enumerate() {
            let (Scope::Path(path) | Scope::Prefix(path)) = &rule.scope;
            let Some(list) = list_of(path.as_str()).filter(|_| rule.feature().is_some()) else { continue };
            let method = rule.methods.first().map_or("GET", Method::as_str);
            let Ok(route) = routes.resolve(method, list.as_bytes()) else { continue };
            if route.rules().iter().any(|matched| matched.index == i) {
                let message = format!(
                    "{list} is gated too, since some backends take it for an entry without a name: if it is not sold, add \
                     `{{ match: {{ path: {list} }}, access: always }}`"
                );
                self.warning(&at!["routes", "rules", i], message);
            }
        }
    }

    fn api(&mut self) {
        self.hidden_rules();
        let Some(api) = &self.config.api else { return };
        for (key, paths) in [("paths", &api.paths), ("websocket", &api.websocket)] {
            for (i, path) in paths.iter().enumerate() {
                if let Some(why) = api_path_problem(path) {
                    self.error(&at!["api", key, i], why);
                }
                if paths[..i].contains(path) {
                    self.error(&at!["api", key, i], format!("{path} is listed twice"));
                }
                // What is right below a licence's path belongs to it.
                if let Some(below) = path.rsplit_once('/').filter(|(_, last)| BELOW.contains(last))
                    && api.paths.iter().any(|licence| licence == below.0)
                {
                    self.error(&at!["api", key, i], format!("{path} is served already, as a part of {}", below.0));
                }
            }
        }
    }

    /// Rules that nobody comes to, since the path is the proxy's own.
    fn hidden_rules(&mut self) {
        let rules = self.config.routes.rules.iter().map(|rule| rule.rule()).collect();
        // What is wrong with them is told already.
        let Ok(routes) = Routes::try_new(rules, self.config.routes.options()) else { return };
        let api = self.config.api.clone().unwrap_or_default();
        for (key, paths) in [("paths", &api.paths), ("websocket", &api.websocket)] {
            for (i, path) in paths.iter().enumerate() {
                let Ok(route) = routes.resolve("GET", path.as_bytes()) else { continue };
                if let Route::Gated(_) | Route::Denied(Some(_)) = &route
                    && let Some(Matched { rule, .. }) = route.rules().first()
                {
                    let message = format!("{path} is answered by the proxy itself: the rule `{rule}` has no say there");
                    self.warning(&at!["api", key, i], message);
                }
            }
        }
    }

    fn cors(&mut self) {
        let Some(cors) = &self.config.cors else { return };
        for (i, origin) in cors.allow_origins.iter().enumerate() {
            if origin.is_any() && cors.allow_credentials {
                let message = "with `allow_credentials` any page could ask in its visitors' names: list the origins";
                self.error(&at!["cors", "allow_origins", i], message);
            }
        }
    }

    fn deny(&mut self) {
        let deny = &self.config.deny;
        if let Some(why) = upgrade_url_problem(&deny.upgrade_url) {
            self.error(&at!["deny", "upgrade_url"], why);
        }
        for (reason, status) in &deny.status {
            if !(400..=599).contains(status) {
                self.error(&at!["deny", "status", reason.name()], "must be from 400 to 599: a refusal is an error");
            }
        }
    }
}

/// Whether a header is about the connection or the message, and not about who sent it.
fn is_framing(name: &str) -> bool {
    let names = [
        "host",
        "connection",
        "content-length",
        "content-type",
        "transfer-encoding",
        "te",
        "trailer",
        "upgrade",
        "keep-alive",
        "expect",
        "authorization",
        "cookie",
        "forwarded",
    ];
    names.contains(&name)
}

/// The list that a path with a placeholder at its end is an entry of, where one path stands for it.
fn list_of(path: &str) -> Option<String> {
    let (list, entry) = path.trim_end_matches('/').rsplit_once('/')?;
    (entry.starts_with('{') && !list.contains('{')).then(|| format!("{list}/"))
}

/// What stands behind the path of a licence where plans are listed, and where it is upgraded.
const BELOW: [&str; 3] = ["plans", "upgrade", "upgrade-click"];

/// A path of our own is compared byte for byte, so it has to be one that every client sends in one way.
fn api_path_problem(path: &str) -> Option<&'static str> {
    let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
    let Some(segments) = path.strip_prefix('/') else { return Some("expected a path that starts with a slash") };
    let plain = |segment: &str| {
        let dots = segment == "." || segment == "..";
        !segment.is_empty() && !dots && segment.bytes().all(plain)
    };
    (!segments.split('/').all(plain))
        .then_some("expected segments of letters, digits, `-`, `.`, `_` and `~`, without a slash at the end")
}

fn upgrade_url_problem(url: &str) -> Option<String> {
    let rest = url.replace("{feature}", "");
    if let Some(start) = rest.find(['{', '}']) {
        let end = rest[start..].find('}').map_or(rest.len(), |end| start + end + 1);
        return Some(format!("{:?} is no placeholder: the only one is {{feature}}", &rest[start..end]));
    }
    if rest.contains(|c: char| c.is_control() || c.is_whitespace() || matches!(c, '"' | '<' | '>' | '\\')) {
        return Some("has a character that URLs can't have: write it percent-encoded".to_owned());
    }
    let absolute = rest.starts_with("https://") || rest.starts_with("http://");
    let rooted = rest.starts_with('/') && !rest.starts_with("//");
    (!absolute && !rooted).then(|| "expected a path that starts with a slash, or an http(s) URL".to_owned())
}
