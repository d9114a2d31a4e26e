//! Who follows the link to an upgrade: tells from a request's target which denied features it is about.

use std::sync::Arc;

/// The links that denials give, one for each feature.
#[derive(Clone, Debug, Default)]
pub struct UpgradeLinks {
    /// Where they lead; none: wherever the denial came from.
    host: Option<String>,
    links: Vec<Link>,
}

#[derive(Clone, Debug)]
struct Link {
    feature: Arc<str>,
    path: Vec<u8>,
    /// The pairs of its query, in any order, beside which there may be others.
    query: Vec<Vec<u8>>,
}

impl UpgradeLinks {
    /// The links to `features`, each as a denial writes it: a path, or a URL with a scheme and a host.
    pub fn new(features: impl IntoIterator<Item = (Arc<str>, String)>) -> Self {
        let mut host = None;
        let links = features.into_iter().map(|(feature, url)| {
            let (at, target) = split_host(&url);
            host = at.map(str::to_ascii_lowercase);
            let (path, query) = split_query(target.as_bytes());
            let path = if path.is_empty() { b"/" } else { path };
            let query = query.split(|byte| *byte == b'&').filter(|pair| !pair.is_empty()).map(<[u8]>::to_vec);
            Link { feature, path: path.to_vec(), query: query.collect() }
        });
        let links = links.collect();
        Self { host, links }
    }

    /// Whether a request for this raw target may follow one of them: cheap to ask, and hardly ever so.
    pub fn lead_to(&self, raw_target: &[u8]) -> bool {
        self.links.iter().any(|link| raw_target.starts_with(&link.path))
    }

    /// The features whose link a request follows: one of this raw target, to this host. Where links don't name their feature,
    /// it is about all.
    pub fn followed<'a>(&'a self, host: Option<&'a [u8]>, raw_target: &'a [u8]) -> impl Iterator<Item = &'a Arc<str>> {
        let here =
            self.host.as_deref().is_none_or(|own| host.is_some_and(|host| host.eq_ignore_ascii_case(own.as_bytes())));
        let (path, query) = split_query(raw_target);
        let links = self.links.iter().filter(move |link| here && link.path == path);
        let followed = links.filter(move |link| {
            link.query.iter().all(|pair| query.split(|byte| *byte == b'&').any(|other| other == pair.as_slice()))
        });
        followed.map(|link| &link.feature)
    }
}

/// The host of a URL, if it has one, and what follows.
fn split_host(url: &str) -> (Option<&str>, &str) {
    let Some((_, rest)) = url.split_once("://").filter(|(scheme, _)| !scheme.contains(['/', '?', '#'])) else {
        return (None, without_fragment(url));
    };
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (host, target) = rest.split_at(end);
    (Some(host), without_fragment(target))
}

/// Fragments are not sent (RFC 9110 section 4.2.5).
fn without_fragment(target: &str) -> &str {
    target.split('#').next().unwrap_or_default()
}

fn split_query(target: &[u8]) -> (&[u8], &[u8]) {
    match memchr::memchr(b'?', target) {
        Some(at) => (&target[..at], &target[at + 1..]),
        None => (target, &[]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn followed(template: &str, host: &str, target: &str) -> Vec<String> {
        let features = ["crm", "tickets"].map(|name| (Arc::from(name), template.replace("{feature}", name)));
        let links = UpgradeLinks::new(features);
        links.followed(Some(host.as_bytes()), target.as_bytes()).map(|feature| feature.to_string()).collect()
    }

    #[test]
    fn links_are_told_by_path_and_query() {
        const USUAL: &str = "/billing/upgrade?feature={feature}";
        for (template, target, features) in [
            (USUAL, "/billing/upgrade?feature=crm", &["crm"][..]),
            (USUAL, "/billing/upgrade?utm=x&feature=tickets&y=", &["tickets"]),
            (USUAL, "/billing/upgrade?feature=crm&feature=tickets", &["crm", "tickets"]),
            (USUAL, "/billing/upgrade?feature=crmx", &[]),
            (USUAL, "/billing/upgrade?xfeature=crm", &[]),
            (USUAL, "/billing/upgrade", &[]),
            (USUAL, "/billing/upgrade/x?feature=crm", &[]),
            (USUAL, "/billing", &[]),
            ("/upgrade/{feature}", "/upgrade/crm", &["crm"]),
            ("/upgrade/{feature}", "/upgrade/crm?x=1", &["crm"]),
            ("/upgrade/{feature}#plans", "/upgrade/crm", &["crm"]),
            ("/upgrade/{feature}", "/upgrade/crm/", &[]),
            ("/plans", "/plans?from=mail", &["crm", "tickets"]),
            ("https://App.example.com/buy?f={feature}", "/buy?f=crm", &["crm"]),
            ("https://app.example.com?f={feature}", "/?f=crm", &["crm"]),
        ] {
            assert_eq!(followed(template, "app.example.com", target), features, "{template} {target}");
        }
        assert!(followed("https://shop.example.com/buy?f={feature}", "app.example.com", "/buy?f=crm").is_empty());
        assert_eq!(followed("https://shop.example.com/?f={feature}", "SHOP.example.com", "/?f=crm"), ["crm"]);
    }
}
